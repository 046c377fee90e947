/*
 * lease_etcd.c - the lease in etcd, through the JSON gateway of its v3 API (libcurl).
 *
 * Two keys: PREFIX/VM/holder, attached to an etcd lease, so that it goes when nobody renews; PREFIX/VM/term, a counter.
 * Acquiring is one transaction: when there is no holder and the counter is as we read it, put both. Renewing is a
 * keep-alive; our deadline counts from before it was sent (L1), and etcd counts its ttl from when it handled it, so etcd
 * never gives the key up before our deadline, which lies rp_lease_margin_ns before the ttl's end. Source: etcd's api/etcdserverpb/rpc.proto (LeaseGrant, LeaseKeepAlive,
 * LeaseRevoke, Txn, Range); bytes are base64 and 64-bit numbers are strings there.
 *
 * A request goes to the endpoints in turn, within the time that is left of the lease at most.
 */
#include "replicator/lease.h"

#include <curl/curl.h>
#include <errno.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "reprise/lease/"
#define REPLY_MAX (256u << 10)
#define ENDPOINTS_MAX 8u
#define REQUEST_MS 2000         /* at most, and never more than what is left until the deadline */

struct etcd_lease {
    struct rp_lease base;
    CURL *curl;
    struct curl_slist *headers;
    char urls[ENDPOINTS_MAX][300];
    unsigned nurls, current;
    char holder_key[256], term_key[256];    /* base64 */
    int64_t id;                             /* of the etcd lease, 0: none */
    char reply[REPLY_MAX];
    size_t reply_len;
};

static struct etcd_lease *of(struct rp_lease *l)
{
    return (struct etcd_lease *)l;
}

/* --- base64, requests --- */

static void to_base64(const char *text, char *out, size_t size)
{
    size_t n = strlen(text);
    if (4 * ((n + 2) / 3) + 1 > size)
        n = (size / 4 - 1) * 3;
    EVP_EncodeBlock((unsigned char *)out, (const unsigned char *)text, (int)n);
}

/* The text of a base64 value, cut to size; "" when it is none. */
static void from_base64(const char *in, char *out, size_t size)
{
    unsigned char raw[512];
    size_t n = in ? strlen(in) : 0;
    out[0] = '\0';
    if (n == 0 || n % 4 || n > sizeof(raw) / 3 * 4)
        return;
    int len = EVP_DecodeBlock(raw, (const unsigned char *)in, (int)n);
    if (len < 0)
        return;
    snprintf(out, size, "%.*s", len, (const char *)raw);
}

static size_t take_reply(char *p, size_t size, size_t n, void *ctx)
{
    struct etcd_lease *e = ctx;
    if (n * size > sizeof(e->reply) - 1 - e->reply_len)
        return 0;
    memcpy(e->reply + e->reply_len, p, n * size);
    e->reply_len += n * size;
    return n * size;
}

static int post_once(struct etcd_lease *e, const char *path, const char *body, long timeout_ms, long *status, struct rp_error *err)
{
    char url[400];
    snprintf(url, sizeof(url), "%s%s", e->urls[e->current], path);
    e->reply_len = 0;
    curl_easy_setopt(e->curl, CURLOPT_URL, url);
    curl_easy_setopt(e->curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(e->curl, CURLOPT_TIMEOUT_MS, timeout_ms);
    CURLcode rc = curl_easy_perform(e->curl);
    e->reply[e->reply_len] = '\0';
    if (rc != CURLE_OK)
        return rp_error_exit(err, RP_EXIT_HOST, rc == CURLE_OPERATION_TIMEDOUT ? ETIMEDOUT : EHOSTUNREACH, "etcd %s: %s", e->urls[e->current],
                             curl_easy_strerror(rc));
    curl_easy_getinfo(e->curl, CURLINFO_RESPONSE_CODE, status);
    return 0;
}

/* Sends `body` (released) to an endpoint that answers. *out: its object. */
static int post(struct etcd_lease *e, const char *path, json_t *body, long timeout_ms, json_t **out, struct rp_error *err)
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    long status = 0;
    int rc = -ENOMEM;
    json_decref(body);
    if (!text)
        return rp_error_set(err, ENOMEM, "no memory for a request to etcd");
    for (unsigned i = 0; i < e->nurls; i++) {
        uint64_t now = rp_clock_ns();
        long left = now < until ? (long)((until - now) / 1000000u) / (long)(e->nurls - i) + 1 : 1;
        rc = post_once(e, path, text, left, &status, err);
        if (rc == 0 && status < 500)
            break;
        if (rc == 0)
            rc = rp_error_exit(err, RP_EXIT_HOST, EIO, "etcd %s: %s: status %ld: %.200s", e->urls[e->current], path, status, e->reply);
        e->current = (e->current + 1) % e->nurls;
    }
    free(text);
    if (rc < 0)
        return rc;
    json_t *answer = json_loadb(e->reply, e->reply_len, 0, NULL);
    if (status != 200 || !json_is_object(answer)) {
        json_decref(answer);
        return rp_error_exit(err, RP_EXIT_HOST, status == 404 ? ENOENT : EPROTO, "etcd %s: %s: status %ld: %.200s",
                             e->urls[e->current], path, status, e->reply);
    }
    *out = answer;
    return 0;
}

/* 64-bit numbers come as strings; a field that is zero is left out. */
static int64_t number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    if (json_is_string(v))
        return strtoll(json_string_value(v), NULL, 10);
    return json_is_integer(v) ? (int64_t)json_integer_value(v) : 0;
}

static json_t *text_of(int64_t n)
{
    char s[24];
    snprintf(s, sizeof(s), "%lld", (long long)n);
    return json_string(s);
}

/* --- what stands there --- */

/* The key's value and mod_revision; 0 when there is no such key. */
static int read_key(struct etcd_lease *e, const char *key, char *value, size_t size, int64_t *mod_revision, int64_t *etcd_id,
                    struct rp_error *err)
{
    json_t *answer;
    value[0] = '\0';
    *mod_revision = 0;
    int rc = post(e, "/v3/kv/range", json_pack("{s:s}", "key", key), REQUEST_MS, &answer, err);
    if (rc < 0)
        return rc;
    const json_t *kv = json_array_get(json_object_get(answer, "kvs"), 0);
    if (kv) {
        from_base64(json_string_value(json_object_get(kv, "value")), value, size);
        *mod_revision = number(kv, "mod_revision");
        if (etcd_id)
            *etcd_id = number(kv, "lease");
    }
    json_decref(answer);
    return 0;
}

static int etcd_query(struct rp_lease *base, struct rp_lease_holder *out, struct rp_error *err)
{
    struct etcd_lease *e = of(base);
    char value[128];
    int64_t revision, etcd_id = 0;
    int rc = read_key(e, e->term_key, value, sizeof(value), &revision, NULL, err);
    if (rc < 0)
        return rc;
    char *rest = value;
    out->term = strtoull(value, &rest, 10);
    snprintf(out->owner, sizeof(out->owner), "%s", *rest == ' ' ? rest + 1 : "");
    rc = read_key(e, e->holder_key, value, sizeof(value), &revision, &etcd_id, err);
    if (rc < 0)
        return rc;
    out->held = revision != 0;
    if (out->held)
        snprintf(out->owner, sizeof(out->owner), "%s", value);
    out->ttl_ms = out->held ? base->ttl_ms : 0;
    return 0;
}

/* --- acquire, renew, release --- */

/* L3 from our side: etcd gives the key to the next one the moment its ttl is over, so the margin is ours to keep. */
static uint64_t deadline_of(uint64_t start_ns, uint64_t ttl_ms)
{
    return start_ns + ttl_ms * 1000000u - rp_lease_margin_ns(ttl_ms);
}

static void revoke(struct etcd_lease *e)
{
    json_t *answer;
    struct rp_error err = {0};
    if (e->id && post(e, "/v3/lease/revoke", json_pack("{s:o}", "ID", text_of(e->id)), REQUEST_MS, &answer, &err) == 0)
        json_decref(answer);
    e->id = 0;
}

static int grant(struct etcd_lease *e, uint64_t *ttl_ms, struct rp_error *err)
{
    json_t *answer;
    uint64_t want = (e->base.ttl_ms + 999) / 1000;
    int rc = post(e, "/v3/lease/grant", json_pack("{s:o, s:s}", "TTL", text_of((int64_t)want), "ID", "0"), REQUEST_MS, &answer, err);
    if (rc < 0)
        return rc;
    e->id = number(answer, "ID");
    *ttl_ms = (uint64_t)number(answer, "TTL") * 1000;
    json_decref(answer);
    return e->id && *ttl_ms ? 0 : rp_error_exit(err, RP_EXIT_HOST, EPROTO, "etcd granted no lease");
}

/* { compare: [holder absent, counter unchanged], success: [put holder with the lease, put counter] } */
static json_t *claim_txn(struct etcd_lease *e, int64_t counter_revision, uint64_t term)
{
    char owner[128], counter[160], text[100];
    snprintf(text, sizeof(text), "%llu %s", (unsigned long long)term, e->base.owner);
    to_base64(text, counter, sizeof(counter));
    to_base64(e->base.owner, owner, sizeof(owner));
    return json_pack("{s:[{s:s,s:s,s:s,s:s},{s:s,s:s,s:s,s:o}], s:[{s:{s:s,s:s,s:o}},{s:{s:s,s:s}}]}",
                     "compare",
                     "key", e->holder_key, "target", "CREATE", "result", "EQUAL", "create_revision", "0",
                     "key", e->term_key, "target", "MOD", "result", "EQUAL", "mod_revision", text_of(counter_revision),
                     "success",
                     "request_put", "key", e->holder_key, "value", owner, "lease", text_of(e->id),
                     "request_put", "key", e->term_key, "value", counter);
}

static int etcd_try(struct rp_lease *base, struct rp_lease_grant *out, uint64_t *again_ns, struct rp_error *err)
{
    struct etcd_lease *e = of(base);
    char value[128];
    int64_t revision;
    uint64_t ttl_ms;
    *again_ns = 100000000u;
    int rc = read_key(e, e->holder_key, value, sizeof(value), &revision, NULL, err);
    if (rc < 0)
        return rc;
    if (revision)
        return -EBUSY;
    rc = read_key(e, e->term_key, value, sizeof(value), &revision, NULL, err);
    if (rc < 0)
        return rc;
    uint64_t term = strtoull(value, NULL, 10) + 1, start = rp_lease_now();
    json_t *answer;
    if ((rc = grant(e, &ttl_ms, err)) < 0)
        return rc;
    rc = post(e, "/v3/kv/txn", claim_txn(e, revision, term), REQUEST_MS, &answer, err);
    if (rc < 0) {
        revoke(e);      /* whether it happened is unknown: without the lease it did not */
        return rc;
    }
    bool ours = json_is_true(json_object_get(answer, "succeeded"));
    json_decref(answer);
    if (!ours) {
        revoke(e);
        return -EBUSY;
    }
    *out = (struct rp_lease_grant){.term = term, .deadline_ns = deadline_of(start, ttl_ms)};
    base->ttl_ms = ttl_ms;
    return 0;
}

/* { compare: [holder is attached to our lease, counter unchanged], success: [put counter] } */
static json_t *advance_txn(struct etcd_lease *e, int64_t counter_revision, uint64_t term)
{
    char counter[160], text[100];
    snprintf(text, sizeof(text), "%llu %s", (unsigned long long)term, e->base.owner);
    to_base64(text, counter, sizeof(counter));
    return json_pack("{s:[{s:s,s:s,s:s,s:o},{s:s,s:s,s:s,s:o}], s:[{s:{s:s,s:s}}]}",
                     "compare",
                     "key", e->holder_key, "target", "LEASE", "result", "EQUAL", "lease", text_of(e->id),
                     "key", e->term_key, "target", "MOD", "result", "EQUAL", "mod_revision", text_of(counter_revision),
                     "success",
                     "request_put", "key", e->term_key, "value", counter);
}

/* -EBUSY: the next term is not ours, or was when it was asked for again: an answer got lost, and libcurl or post asked once more. */
static int advance_once(struct etcd_lease *e, struct rp_error *err)
{
    char value[128];
    int64_t revision;
    json_t *answer;
    int rc = read_key(e, e->term_key, value, sizeof(value), &revision, NULL, err);
    if (rc < 0)
        return rc;
    uint64_t term = strtoull(value, NULL, 10);
    if (term < e->base.term || term > e->base.term + 1)
        return -EBUSY;
    /* One more than ours: an advance before, whose answer got lost. */
    rc = post(e, "/v3/kv/txn", advance_txn(e, revision, e->base.term + 1), REQUEST_MS, &answer, err);
    if (rc < 0)
        return rc;
    bool ours = json_is_true(json_object_get(answer, "succeeded"));
    json_decref(answer);
    return ours ? 0 : -EBUSY;
}

/* The deadline stays that of the last renewal: the lease in etcd is the same. */
static int etcd_advance(struct rp_lease *base, struct rp_lease_grant *out, struct rp_error *err)
{
    int rc = advance_once(of(base), err);
    if (rc == -EBUSY)       /* by the counter as it is now, etcd says whose it is */
        rc = advance_once(of(base), err);
    if (rc < 0)
        return rc;
    *out = (struct rp_lease_grant){.term = base->term + 1, .deadline_ns = base->deadline_ns};
    return 0;
}

static int etcd_renew(struct rp_lease *base, uint64_t *deadline_ns, struct rp_error *err)
{
    struct etcd_lease *e = of(base);
    json_t *answer;
    uint64_t start = rp_lease_now();
    long left = (long)((base->deadline_ns - start) / 1000000u) + 1;
    int rc = post(e, "/v3/lease/keepalive", json_pack("{s:o}", "ID", text_of(e->id)), left < REQUEST_MS ? left : REQUEST_MS, &answer, err);
    if (rc < 0)
        return rc;
    int64_t ttl_s = number(json_object_get(answer, "result"), "TTL");
    json_decref(answer);
    if (ttl_s <= 0)
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "etcd let the lease of \"%s\" (term %llu) run out", base->vm_name,
                             (unsigned long long)base->term);
    *deadline_ns = deadline_of(start, (uint64_t)ttl_s * 1000);
    return 0;
}

static int etcd_release(struct rp_lease *base, struct rp_error *err)
{
    struct etcd_lease *e = of(base);
    json_t *answer;
    int rc = post(e, "/v3/lease/revoke", json_pack("{s:o}", "ID", text_of(e->id)), REQUEST_MS, &answer, err);
    e->id = 0;
    if (rc == -ENOENT)      /* it had run out already */
        return 0;
    if (rc == 0)
        json_decref(answer);
    return rc;
}

static void etcd_destroy(struct rp_lease *base)
{
    struct etcd_lease *e = of(base);
    curl_slist_free_all(e->headers);
    curl_easy_cleanup(e->curl);
    free(e);
}

static const struct rp_lease_ops etcd_ops = {
    .name = "etcd", .poll_ms = 100, .try = etcd_try, .renew = etcd_renew, .release = etcd_release,
    .advance = etcd_advance, .query = etcd_query, .destroy = etcd_destroy,
};

static int parse_endpoints(struct etcd_lease *e, const char *text, struct rp_error *err)
{
    while (*text) {
        size_t n = strcspn(text, ",");
        bool whole = strncmp(text, "http://", 7) == 0 || strncmp(text, "https://", 8) == 0;
        if (n == 0 || n > 250 || e->nurls == ENDPOINTS_MAX || !memchr(text, ':', n))
            return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "lease \"etcd:%s\": write HOST:PORT, up to %u of them with commas between", text,
                                 ENDPOINTS_MAX);
        snprintf(e->urls[e->nurls++], sizeof(e->urls[0]), "%s%.*s", whole ? "" : "http://", (int)n, text);
        text += n + (text[n] == ',');
    }
    return 0;
}

int rp_lease_etcd_open(const char *endpoints, const char *vm_name, struct rp_lease **out, struct rp_error *err)
{
    char name[193], key[230];
    struct etcd_lease *e = calloc(1, sizeof(*e));
    if (!e)
        return rp_error_set(err, ENOMEM, "no memory for a lease");
    e->base.ops = &etcd_ops;
    int rc = parse_endpoints(e, endpoints, err);
    e->curl = rc == 0 ? curl_easy_init() : NULL;
    if (!e->curl) {
        free(e);
        return rc < 0 ? rc : rp_error_set(err, ENOMEM, "libcurl cannot start");
    }
    rp_lease_name(vm_name, name);
    snprintf(key, sizeof(key), PREFIX "%.150s/holder", name);
    to_base64(key, e->holder_key, sizeof(e->holder_key));
    snprintf(key, sizeof(key), PREFIX "%.150s/term", name);
    to_base64(key, e->term_key, sizeof(e->term_key));
    e->headers = curl_slist_append(NULL, "Content-Type: application/json");
    curl_easy_setopt(e->curl, CURLOPT_HTTPHEADER, e->headers);
    curl_easy_setopt(e->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e->curl, CURLOPT_WRITEFUNCTION, take_reply);
    curl_easy_setopt(e->curl, CURLOPT_WRITEDATA, e);
    curl_easy_setopt(e->curl, CURLOPT_NOPROXY, "*");
    *out = &e->base;
    return 0;
}
