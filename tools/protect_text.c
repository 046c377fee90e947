#include "tools/protect_text.h"

#include <stdio.h>
#include <string.h>

static const char *str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static long long num(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static double ms(const json_t *o, const char *key)
{
    return (double)num(o, key) / 1e3;
}

static void print_lease(const json_t *l)
{
    if (!json_is_object(l))
        return;
    printf("  %-14s %s, %s", "lease", str(l, "where"), str(l, "state"));
    printf(num(l, "left-ms") < 0 ? ", term %lld, no fencing" : ", term %lld, %lld ms of %lld ms left, %lld renewals, %lld failed", num(l, "term"),
           num(l, "left-ms"), num(l, "ttl-ms"), num(l, "renewals"), num(l, "failures"));
    printf("%s%s\n", *str(l, "reason") ? ": " : "", str(l, "reason"));
}

static void print_times(const char *name, const json_t *t)
{
    if (t)
        printf("  %-14s p50 %.3f ms, p99 %.3f ms, longest %.3f ms (%lld epochs)\n", name, ms(t, "p50-us"), ms(t, "p99-us"), ms(t, "max-us"),
               num(t, "count"));
}

static void print_codecs(const json_t *p)
{
    const char *name;
    json_t *c;
    long long pages = 0, bytes = 0;
    printf("  %-14s", "pages");
    json_object_foreach(json_object_get(p, "codecs"), name, c) {
        printf(" %s %lld (%lld KiB),", name, num(c, "pages"), num(c, "bytes") >> 10);
        pages += num(c, "pages");
        bytes += num(c, "bytes");
    }
    printf(" unchanged %lld", num(p, "unchanged-pages"));
    if (bytes)
        printf("; %.1f to 1", (double)pages * 4096 / (double)bytes);
    putchar('\n');
}

static void print_capture(const json_t *c)
{
    const json_t *cow = json_object_get(c, "copy-on-write");
    if (!c)
        return;
    printf("  %-14s %s; copying a page takes %lld ns", "capture", str(c, "strategy"), num(c, "copy-ns"));
    if (*str(cow, "reason"))
        printf("; no copy-on-write: %s\n", str(cow, "reason"));
    else if (!json_is_true(json_object_get(cow, "able")))
        printf("; copy-on-write was not needed yet\n");
    else
        printf(", protecting it %lld ns, a write fault %lld us, the next write %.1f us: copy-on-write %s (%lld pages at %lld cuts, %lld faults)\n", num(cow, "page-ns"),
               num(cow, "fault-ns") / 1000, (double)num(cow, "after-ns") / 1e3, json_is_true(json_object_get(cow, "pays")) ? "pays" : "does not pay", num(cow, "pages"),
               num(cow, "cuts"), num(cow, "faults"));
}

void rp_protect_print(const json_t *p)
{
    const json_t *link = json_object_get(p, "link"), *out = json_object_get(p, "outputs");
    printf("  %-14s %s%s%s%s%s\n", "protection", str(p, "state"), *str(p, "standby") ? " by " : "", str(p, "standby"),
           *str(p, "reason") ? "; last loss: " : "", str(p, "reason"));
    print_lease(json_object_get(p, "lease"));
    if (!json_object_get(p, "committed"))
        return;
    printf("  %-14s %lld cut, %lld committed (%lld ms ago), %.0f dirty pages/s\n", "epochs", num(p, "epoch"), num(p, "committed"),
           num(p, "committed-ms-ago"), json_real_value(json_object_get(p, "dirty-pages-per-second")));
    const json_t *cost = json_object_get(p, "cost");
    printf("  %-14s %s; epochs of %.1f ms, vCPUs throttled by %lld %%, %.2f of a core\n", "pressure", str(cost, "pressure"), ms(cost, "epoch-us"),
           num(cost, "throttle-percent"), json_real_value(json_object_get(cost, "cores")));
    print_times("pause", json_object_get(p, "pause"));
    print_times("cut to commit", json_object_get(p, "commit"));
    print_capture(json_object_get(p, "capture"));
    printf("  %-14s %s; waited p50 %.3f ms, p99 %.3f ms, longest %.3f ms; %lld wait now (%lld bytes)\n", "outputs",
           json_is_true(json_object_get(out, "held")) ? "held until committed" : "flow freely", ms(out, "hold-p50-us"), ms(out, "hold-p99-us"),
           ms(out, "hold-max-us"), num(out, "waiting-frames"), num(out, "waiting-bytes"));
    printf("  %-14s %s, %lld streams, %lld KiB sent, round trip %.3f ms\n", "link", str(link, "transport"), num(link, "streams"),
           num(link, "bytes") >> 10, ms(link, "rtt-us"));
    print_codecs(p);
}

void rp_standby_print(const json_t *s)
{
    printf("  %-14s %s at %s%s%s\n", "standby", str(s, "state"), str(s, "listens-at"), *str(s, "primary") ? ", primary " : "", str(s, "primary"));
    if (num(s, "epoch"))
        printf("  %-14s epoch %lld (term %lld), cut %lld ms ago; %lld applied\n", "holds", num(s, "epoch"), num(s, "term"), num(s, "epoch-ms-ago"),
               num(s, "epochs-applied"));
    if (*str(s, "last-session"))
        printf("  %-14s %s\n", "last session", str(s, "last-session"));
    print_lease(json_object_get(s, "lease"));
}
