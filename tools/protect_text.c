#include "tools/protect_text.h"

#include "tools/json.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static double ms(const json_t *o, const char *key)
{
    return (double)rp_json_num(o, key) / 1e3;
}

static void print_lease(const json_t *l)
{
    if (!json_is_object(l))
        return;
    printf("  %-14s %s, %s", "lease", rp_json_str(l, "where"), rp_json_str(l, "state"));
    printf(rp_json_num(l, "left-ms") < 0 ? ", term %lld, no fencing" : ", term %lld, %lld ms of %lld ms left, %lld renewals, %lld failed", rp_json_num(l, "term"),
           rp_json_num(l, "left-ms"), rp_json_num(l, "ttl-ms"), rp_json_num(l, "renewals"), rp_json_num(l, "failures"));
    printf("%s%s\n", *rp_json_str(l, "reason") ? ": " : "", rp_json_str(l, "reason"));
}

static void print_times(const char *name, const json_t *t)
{
    if (t)
        printf("  %-14s p50 %.3f ms, p99 %.3f ms, longest %.3f ms (%lld epochs)\n", name, ms(t, "p50-us"), ms(t, "p99-us"), ms(t, "max-us"),
               rp_json_num(t, "count"));
}

/* Each codec's pages and bytes, and how much smaller they got. */
static void print_codecs(const json_t *p)
{
    const char *name;
    json_t *c;
    long long pages = 0, bytes = 0;
    printf("  %-14s", "pages");
    json_object_foreach(json_object_get(p, "codecs"), name, c) {
        long long n = rp_json_num(c, "pages"), b = rp_json_num(c, "bytes");
        printf(" %s %lld (%lld KiB", name, n, b >> 10);
        if (b)
            printf(", %.1f to 1", (double)n * 4096 / (double)b);
        printf("),");
        pages += n;
        bytes += b;
    }
    printf(" unchanged %lld", rp_json_num(p, "unchanged-pages"));
    if (bytes)
        printf("; together %.1f to 1", (double)pages * 4096 / (double)bytes);
    putchar('\n');
}

static void print_capture(const json_t *c)
{
    const json_t *cow = json_object_get(c, "copy-on-write");
    if (!c)
        return;
    printf("  %-14s %s; copying a page takes %lld ns", "capture", rp_json_str(c, "strategy"), rp_json_num(c, "copy-ns"));
    if (*rp_json_str(cow, "reason"))
        printf("; no copy-on-write: %s\n", rp_json_str(cow, "reason"));
    else if (!json_is_true(json_object_get(cow, "able")))
        printf("; copy-on-write was not needed yet\n");
    else
        printf(", protecting it %lld ns, a write fault %lld us, the next write %.1f us: copy-on-write %s (%lld pages at %lld cuts, %lld faults)\n",
               rp_json_num(cow, "page-ns"), rp_json_num(cow, "fault-ns") / 1000, (double)rp_json_num(cow, "after-ns") / 1e3,
               json_is_true(json_object_get(cow, "pays")) ? "pays" : "does not pay", rp_json_num(cow, "pages"), rp_json_num(cow, "cuts"),
               rp_json_num(cow, "faults"));
}

static bool is(const json_t *o, const char *key, const char *value)
{
    return strcmp(rp_json_str(o, key), value) == 0;
}

/* What the state means, and whom it is about. */
void rp_protect_summary(const json_t *p, char *out, size_t size)
{
    static const struct { const char *state, *says; } with[] = {
        {"leasing", "waiting for the lease, then for"}, {"connecting", "connecting to"}, {"syncing", "syncing to"}, {"protected", "by"},
        {"unprotected", "unprotected, looking for"}, {"paused", "standing still, looking for"}, {"switched", "handed over to"},
    };
    const json_t *percent = json_object_get(json_object_get(p, "sync"), "percent");
    const char *standby = rp_json_str(p, "standby");
    snprintf(out, size, "%s", *standby ? "off" : "-");
    for (unsigned i = 0; i < sizeof(with) / sizeof(with[0]); i++)
        if (*standby && is(p, "state", with[i].state))
            snprintf(out, size, "%s %s", with[i].says, standby);
    if (percent)
        snprintf(out, size, "syncing to %s, %.0f %%", standby, json_real_value(percent));
}

static void print_state(const json_t *p)
{
    const char *reason = rp_json_str(p, "reason");
    char text[600];
    rp_protect_summary(p, text, sizeof(text));
    if (is(p, "state", "off")) {
        printf("  %-14s off%s%s\n", "protection", *reason ? ": " : "", reason);
        return;
    }
    printf("  %-14s %s%s, for %.1f s\n", "protection", is(p, "state", "protected") ? "protected " : "", text, (double)rp_json_num(p, "since-ms") / 1e3);
    if (*reason)
        printf("  %-14s %lld, the last: %s\n", "losses", rp_json_num(p, "losses"), reason);
}

static void print_goal(const json_t *g)
{
    if (!g)
        return;
    printf("  %-14s epochs of %.1f ms", "goal", ms(g, "epoch-us"));
    if (rp_json_num(g, "latency-us"))
        printf(", outputs wait %.1f ms", ms(g, "latency-us"));
    if (rp_json_num(g, "bandwidth"))
        printf(", at most %.1f MiB/s", (double)rp_json_num(g, "bandwidth") / (1 << 20));
    if (rp_json_num(g, "cpu"))
        printf(", at most %lld %% of a core", rp_json_num(g, "cpu"));
    printf("; heartbeats every %lld ms, %lld stream%s, capture %s; without a standby the VM %s\n", rp_json_num(g, "heartbeat-ms"), rp_json_num(g, "streams"),
           rp_json_num(g, "streams") == 1 ? "" : "s", rp_json_str(g, "capture"), is(g, "on-loss", "pause") ? "stands still" : "runs");
}

static void print_progress(const json_t *p)
{
    const json_t *s = json_object_get(p, "sync"), *d = json_object_get(p, "disks"), *eta = json_object_get(s, "eta-ms");
    if (!json_object_get(s, "percent"))
        return;
    printf("  %-14s %s: %.1f %%, %lld of %lld MiB of memory", "sync", rp_json_str(s, "kind"), json_real_value(json_object_get(s, "percent")),
           rp_json_num(s, "looked-at-bytes") >> 20, rp_json_num(s, "to-look-at-bytes") >> 20);
    if (rp_json_num(d, "copy-bytes"))
        printf(", %lld of %lld MiB of disks", rp_json_num(d, "copied-bytes") >> 20, rp_json_num(d, "copy-bytes") >> 20);
    printf("; %.1f MiB/s", (double)rp_json_num(s, "bytes-per-second") / (1 << 20));
    if (eta)
        printf(", %.1f s to go", (double)json_integer_value(eta) / 1e3);
    putchar('\n');
}

static void print_outputs(const json_t *out)
{
    printf("  %-14s %s; waited p50 %.3f ms, p99 %.3f ms, longest %.3f ms; %lld wait now (%lld bytes)\n", "outputs",
           json_is_true(json_object_get(out, "held")) ? "held until committed" : "flow freely", ms(out, "hold-p50-us"), ms(out, "hold-p99-us"),
           ms(out, "hold-max-us"), rp_json_num(out, "waiting-frames"), rp_json_num(out, "waiting-bytes"));
}

/* What is so as long as a standby is there. */
static void print_session(const json_t *p)
{
    const json_t *link = json_object_get(p, "link"), *cost = json_object_get(p, "cost");
    printf("  %-14s %s; epochs of %.1f ms, vCPUs throttled by %lld %%, %.2f of a core\n", "pressure", rp_json_str(cost, "pressure"), ms(cost, "epoch-us"),
           rp_json_num(cost, "throttle-percent"), json_real_value(json_object_get(cost, "cores")));
    print_capture(json_object_get(p, "capture"));
    printf("  %-14s %s, %lld stream%s, %lld KiB sent, round trip %.3f ms\n", "link", rp_json_str(link, "transport"), rp_json_num(link, "streams"),
           rp_json_num(link, "streams") == 1 ? "" : "s", rp_json_num(link, "bytes") >> 10, ms(link, "rtt-us"));
}

void rp_protect_print(const json_t *p)
{
    bool connected = json_is_true(json_object_get(p, "connected"));
    print_state(p);
    print_goal(json_object_get(p, "goal"));
    print_lease(json_object_get(p, "lease"));
    if (json_object_get(p, "outputs"))
        print_outputs(json_object_get(p, "outputs"));
    if (!json_object_get(p, "committed"))
        return;
    print_progress(p);
    printf("  %-14s %lld cut, %lld committed (%lld behind, %lld ms ago), %.0f dirty pages/s%s\n", "epochs", rp_json_num(p, "epoch"), rp_json_num(p, "committed"),
           rp_json_num(p, "lag-epochs"), rp_json_num(p, "committed-ms-ago"), json_real_value(json_object_get(p, "dirty-pages-per-second")),
           connected ? "" : "; this and below: until the standby was lost");
    print_times("pause", json_object_get(p, "pause"));
    print_times("cut to commit", json_object_get(p, "commit"));
    if (connected)
        print_session(p);
    print_codecs(p);
}

void rp_standby_summary(const json_t *s, char *out, size_t size)
{
    const char *primary = rp_json_str(s, "primary"), *at = rp_json_str(s, "listens-at");
    if (is(s, "state", "waiting"))
        snprintf(out, size, "waiting for a primary at %s", at);
    else if (is(s, "state", "syncing") || is(s, "state", "ready"))
        snprintf(out, size, "%s, primary %s", rp_json_str(s, "state"), primary);
    else if (is(s, "state", "alone"))
        snprintf(out, size, "alone: has lost its primary (%s), waiting for the lease", rp_json_str(s, "last-primary"));
    else if (is(s, "state", "handed-over"))
        snprintf(out, size, "handed over: waiting for the lease");
    else if (is(s, "state", "behind"))
        snprintf(out, size, "behind: may not run what it holds, waiting for a primary at %s", at);
    else
        snprintf(out, size, "taking over");
}

void rp_standby_print(const json_t *s)
{
    char text[600];
    rp_standby_summary(s, text, sizeof(text));
    printf("  %-14s %s, for %.1f s\n  %-14s %s\n", "standby", text, (double)rp_json_num(s, "since-ms") / 1e3, "listens at",
           rp_json_str(s, "listens-at"));
    if (rp_json_num(s, "epoch"))
        printf("  %-14s epoch %lld (term %lld), cut %lld ms ago; %lld applied\n", "holds", rp_json_num(s, "epoch"), rp_json_num(s, "term"), rp_json_num(s, "epoch-ms-ago"),
               rp_json_num(s, "epochs-applied"));
    if (*rp_json_str(s, "last-session"))
        printf("  %-14s %s\n", "last session", rp_json_str(s, "last-session"));
    print_lease(json_object_get(s, "lease"));
}
