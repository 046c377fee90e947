#include "core/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint32_t width_of(const struct rp_field *f)
{
    switch (f->kind) {
    case RP_F_U16: return 2;
    case RP_F_U32: return 4;
    case RP_F_U64: return 8;
    case RP_F_STRUCT: return f->table->size;
    default: return 1;
    }
}

/* How many elements of a field are in use; never more than its capacity. */
static uint32_t used(const struct rp_field *f, const uint8_t *state)
{
    if (!f->counted_by)
        return f->count;
    uint32_t n;
    memcpy(&n, state + f->counted_by - 1, sizeof(n));
    return n < f->count ? n : f->count;
}

static void put_elements(const struct rp_field *f, const uint8_t *from, uint32_t n, struct rp_buf *b)
{
    switch (f->kind) {
    case RP_F_U16:
        for (uint32_t i = 0; i < n; i++) {
            uint16_t v;
            memcpy(&v, from + 2 * (size_t)i, 2);
            rp_buf_u16(b, v);
        }
        break;
    case RP_F_U32:
        for (uint32_t i = 0; i < n; i++) {
            uint32_t v;
            memcpy(&v, from + 4 * (size_t)i, 4);
            rp_buf_u32(b, v);
        }
        break;
    case RP_F_U64:
        for (uint32_t i = 0; i < n; i++) {
            uint64_t v;
            memcpy(&v, from + 8 * (size_t)i, 8);
            rp_buf_u64(b, v);
        }
        break;
    case RP_F_STRUCT:       /* each element: u32 length, then its fields */
        for (uint32_t i = 0; i < n; i++) {
            size_t at = b->len;
            rp_buf_u32(b, 0);
            rp_state_encode(f->table, from + (size_t)i * f->table->size, b);
            if (!b->failed)
                rp_st32(b->data + at, (uint32_t)(b->len - at - 4));
        }
        break;
    default:
        rp_buf_put(b, from, n);
    }
}

void rp_state_encode(const struct rp_state_table *t, const void *state, struct rp_buf *b)
{
    const uint8_t *s = state;
    for (uint32_t i = 0; i < t->nfields; i++) {
        const struct rp_field *f = &t->fields[i];
        if (f->flags & RP_F_PAD)
            continue;
        rp_buf_u16(b, f->tag);
        size_t at = b->len;
        rp_buf_u32(b, 0);
        put_elements(f, s + f->offset, used(f, s), b);
        if (!b->failed)
            rp_st32(b->data + at, (uint32_t)(b->len - at - 4));
    }
}

static int bad(const struct rp_state_table *t, const struct rp_field *f, struct rp_error *err, const char *why)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s version %u: field %s: %s", t->name, t->version, f->name, why);
}

static int get_structs(const struct rp_state_table *t, const struct rp_field *f, uint8_t *to, uint32_t n,
                       struct rp_reader *r, struct rp_error *err)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t len = rp_get_u32(r);
        const uint8_t *p = rp_get(r, len);
        if (!p)
            return bad(t, f, err, "cut short");
        int rc = rp_state_decode(f->table, to + (size_t)i * f->table->size, p, len, err);
        if (rc < 0) {
            rp_error_wrap(err, "%s: %s[%u]", t->name, f->name, i);
            return rc;
        }
    }
    return r->left ? bad(t, f, err, "longer than its elements") : 0;
}

/* Index of the field that counts f's elements; nfields when the table is wrong (rp_state_check refuses it). */
static uint32_t counter_of(const struct rp_state_table *t, const struct rp_field *f)
{
    uint32_t i = 0;
    while (i < t->nfields && (t->fields[i].offset != f->counted_by - 1 || t->fields[i].kind != RP_F_U32))
        i++;
    return i;
}

/* The count is the stream's word: nobody may see it before it was compared with the capacity. */
static int check_count(const struct rp_state_table *t, const struct rp_field *f, const uint8_t *state, uint32_t *n, struct rp_error *err)
{
    *n = f->count;
    if (!f->counted_by)
        return 0;
    memcpy(n, state + f->counted_by - 1, sizeof(*n));
    return *n > f->count ? bad(t, f, err, "more elements than it can hold") : 0;
}

static int get_field(const struct rp_state_table *t, const struct rp_field *f, uint8_t *state, const uint8_t *p,
                     uint32_t len, struct rp_error *err)
{
    uint32_t n, w = width_of(f);
    int rc = check_count(t, f, state, &n, err);
    if (rc < 0)
        return rc;
    uint8_t *to = state + f->offset;
    struct rp_reader r = rp_reader_of(p, len);
    if (f->kind == RP_F_STRUCT)
        return get_structs(t, f, to, n, &r, err);
    if ((uint64_t)n * w != len)
        return bad(t, f, err, "wrong length");
    for (uint32_t i = 0; i < n; i++) {
        uint16_t v16;
        uint32_t v32;
        uint64_t v64;
        switch (f->kind) {
        case RP_F_U16:
            v16 = rp_get_u16(&r);
            memcpy(to + 2 * (size_t)i, &v16, 2);
            break;
        case RP_F_U32:
            v32 = rp_get_u32(&r);
            memcpy(to + 4 * (size_t)i, &v32, 4);
            break;
        case RP_F_U64:
            v64 = rp_get_u64(&r);
            memcpy(to + 8 * (size_t)i, &v64, 8);
            break;
        default:
            memcpy(to, p, n);
            return 0;
        }
    }
    return 0;
}

#define FIELDS_MAX 128u

int rp_state_decode(const struct rp_state_table *t, void *state, const void *bytes, size_t len, struct rp_error *err)
{
    bool seen[FIELDS_MAX] = {false};
    struct rp_reader r = rp_reader_of(bytes, len);
    while (r.left > 0) {
        uint16_t tag = rp_get_u16(&r);
        uint32_t flen = rp_get_u32(&r);
        const uint8_t *p = rp_get(&r, flen);
        if (!p)
            return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "%s version %u: cut short in tag %u", t->name, t->version, tag);
        uint32_t i = 0;
        while (i < t->nfields && (t->fields[i].tag != tag || (t->fields[i].flags & RP_F_PAD)))
            i++;
        if (i == t->nfields) {
            if (tag & RP_TAG_OPTIONAL)
                continue;
            return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG,
                                 "%s: tag %u is unknown to version %u: written by a newer reprise", t->name, tag, t->version);
        }
        if (seen[i])
            return bad(t, &t->fields[i], err, "comes twice");
        seen[i] = true;
        if (t->fields[i].counted_by && !seen[counter_of(t, &t->fields[i])])
            return bad(t, &t->fields[i], err, "comes before its count");
        int rc = get_field(t, &t->fields[i], state, p, flen, err);
        if (rc < 0)
            return rc;
    }
    for (uint32_t i = 0; i < t->nfields; i++) {
        uint32_t n;
        if (!seen[i] && !(t->fields[i].flags & (RP_F_OPTIONAL | RP_F_PAD)))
            return bad(t, &t->fields[i], err, "missing");
        int rc = check_count(t, &t->fields[i], state, &n, err); /* an optional row may be missing and yet be counted */
        if (rc < 0)
            return rc;
    }
    return t->validate ? t->validate(state, err) : 0;
}

static void print_value(const struct rp_field *f, const uint8_t *p, uint32_t n, FILE *out)
{
    uint32_t w = width_of(f);
    if (f->flags & RP_F_TEXT) {
        rp_json_text(p, n, out);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint64_t v = 0;
        memcpy(&v, p + (size_t)i * w, w);
        if (w == 1 && (n > 1 || f->kind == RP_F_BYTES))
            fprintf(out, "%02llx", (unsigned long long)v);
        else
            fprintf(out, "%s0x%llx", i ? " " : "", (unsigned long long)v);
    }
}

/* Trailing zero elements say nothing: a 4 KiB XSAVE area prints as what is in use. */
static uint32_t shown(const struct rp_field *f, const uint8_t *p, uint32_t n)
{
    uint32_t w = width_of(f);
    static const uint8_t zero[8];
    while (!(f->flags & RP_F_TEXT) && n > 1 && memcmp(p + (size_t)(n - 1) * w, zero, w) == 0)
        n--;
    return n;
}

static void print_element(const struct rp_field *f, uint32_t k, FILE *out, int indent)
{
    if (f->counted_by || f->count > 1)
        fprintf(out, "%*s%s[%u]\n", indent, "", f->name, k);
    else
        fprintf(out, "%*s%s\n", indent, "", f->name);
}

void rp_state_print(const struct rp_state_table *t, const void *state, FILE *out, int indent)
{
    const uint8_t *s = state;
    for (uint32_t i = 0; i < t->nfields; i++) {
        const struct rp_field *f = &t->fields[i];
        if (f->flags & RP_F_PAD)
            continue;
        uint32_t n = used(f, s);
        if (f->kind == RP_F_STRUCT) {
            for (uint32_t k = 0; k < n; k++) {
                print_element(f, k, out, indent);
                rp_state_print(f->table, s + f->offset + (size_t)k * f->table->size, out, indent + 2);
            }
            continue;
        }
        uint32_t show = shown(f, s + f->offset, n);
        fprintf(out, "%*s%s = ", indent, "", f->name);
        print_value(f, s + f->offset, show, out);
        fprintf(out, show < n ? " (+%u zero)\n" : "\n", n - show);
    }
}

int rp_state_diff(const struct rp_state_table *t, const void *a, const void *b, FILE *out, int indent)
{
    const uint8_t *sa = a, *sb = b;
    int differ = 0;
    for (uint32_t i = 0; i < t->nfields; i++) {
        const struct rp_field *f = &t->fields[i];
        if (f->flags & RP_F_PAD)
            continue;
        uint32_t na = used(f, sa), nb = used(f, sb);
        if (f->kind == RP_F_STRUCT) {
            for (uint32_t k = 0; k < na && k < nb; k++) {
                size_t at = f->offset + (size_t)k * f->table->size;
                int d = rp_state_diff(f->table, sa + at, sb + at, NULL, 0);
                if (d && out) {
                    print_element(f, k, out, indent);
                    rp_state_diff(f->table, sa + at, sb + at, out, indent + 2);
                }
                differ += d;
            }
            if (na != nb) {
                differ++;
                if (out)
                    fprintf(out, "%*s%s: %u elements -> %u elements\n", indent, "", f->name, na, nb);
            }
            continue;
        }
        if (na == nb && memcmp(sa + f->offset, sb + f->offset, (size_t)na * width_of(f)) == 0)
            continue;
        differ++;
        if (!out)
            continue;
        fprintf(out, "%*s%s: ", indent, "", f->name);
        print_value(f, sa + f->offset, shown(f, sa + f->offset, na), out);
        fputs(" -> ", out);
        print_value(f, sb + f->offset, shown(f, sb + f->offset, nb), out);
        fputc('\n', out);
    }
    return differ;
}

/* --- JSON --- */

void rp_json_text(const void *text, size_t n, FILE *out)
{
    const uint8_t *p = text;
    fputc('"', out);
    for (size_t i = 0; i < n && p[i]; i++)
        if (p[i] == '"' || p[i] == '\\')
            fprintf(out, "\\%c", p[i]);
        else if (p[i] < ' ' || p[i] > '~')
            fprintf(out, "\\u%04x", p[i]);
        else
            fputc(p[i], out);
    fputc('"', out);
}

static void json_value(const struct rp_field *f, const uint8_t *p, uint32_t n, FILE *out)
{
    uint32_t w = width_of(f);
    bool row = f->counted_by || f->count > 1;
    if (f->flags & RP_F_TEXT) {
        rp_json_text(p, n, out);
        return;
    }
    if (w == 1 && (row || f->kind == RP_F_BYTES)) {
        fputc('"', out);
        print_value(f, p, n, out);
        fputc('"', out);
        return;
    }
    fputs(row ? "[" : "", out);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t v = 0;
        memcpy(&v, p + (size_t)i * w, w);
        fprintf(out, "%s%llu", i ? ", " : "", (unsigned long long)v);
    }
    fputs(row ? "]" : "", out);
}

void rp_state_json(const struct rp_state_table *t, const void *state, FILE *out)
{
    const uint8_t *s = state;
    const char *sep = "";
    fputc('{', out);
    for (uint32_t i = 0; i < t->nfields; i++) {
        const struct rp_field *f = &t->fields[i];
        uint32_t n = used(f, s);
        bool row = f->counted_by || f->count > 1;
        if (f->flags & RP_F_PAD)
            continue;
        fprintf(out, "%s\"%s\": ", sep, f->name);
        sep = ", ";
        if (f->kind != RP_F_STRUCT) {
            json_value(f, s + f->offset, n, out);
            continue;
        }
        fputs(row ? "[" : "", out);
        for (uint32_t k = 0; k < n; k++) {
            fputs(k ? ", " : "", out);
            rp_state_json(f->table, s + f->offset + (size_t)k * f->table->size, out);
        }
        fputs(row ? "]" : "", out);
    }
    fputc('}', out);
}

/* A row's counter is a u32 of the same struct that is encoded before it. */
static int check_counters(const struct rp_state_table *t, struct rp_error *err)
{
    for (uint32_t i = 0; i < t->nfields; i++)
        if (t->fields[i].counted_by && counter_of(t, &t->fields[i]) >= i)
            return rp_error_set(err, EINVAL, "%s: what counts %s is no u32 field before it", t->name, t->fields[i].name);
    return 0;
}

static int check_tags(const struct rp_state_table *t, struct rp_error *err)
{
    for (uint32_t i = 0; i < t->nfields; i++)
        if (!(t->fields[i].flags & RP_F_PAD) && t->fields[i].tag == 0)
            return rp_error_set(err, EINVAL, "%s: %s has no tag", t->name, t->fields[i].name);
    for (uint32_t i = 0; i < t->nfields; i++)
        for (uint32_t k = i + 1; k < t->nfields; k++)
            if (!((t->fields[i].flags | t->fields[k].flags) & RP_F_PAD) && t->fields[i].tag == t->fields[k].tag)
                return rp_error_set(err, EINVAL, "%s: %s and %s share tag %u", t->name, t->fields[i].name,
                                    t->fields[k].name, t->fields[i].tag);
    return 0;
}

int rp_state_check(const struct rp_state_table *t, struct rp_error *err)
{
    if (t->nfields > FIELDS_MAX)
        return rp_error_set(err, EINVAL, "%s: more than %u fields", t->name, FIELDS_MAX);
    uint8_t *owner = calloc(1, t->size);
    if (!owner)
        return rp_error_set(err, ENOMEM, "%s: no memory", t->name);
    int rc = 0;
    for (uint32_t i = 0; i < t->nfields && rc == 0; i++) {
        const struct rp_field *f = &t->fields[i];
        size_t n = (size_t)f->count * width_of(f);
        if (f->offset + n > t->size)
            rc = rp_error_set(err, EINVAL, "%s: %s reaches beyond the struct", t->name, f->name);
        for (size_t k = 0; k < n && rc == 0; k++)
            if (owner[f->offset + k]++)
                rc = rp_error_set(err, EINVAL, "%s: %s overlaps another field at byte %zu", t->name, f->name, f->offset + k);
        if (rc == 0 && f->kind == RP_F_STRUCT)
            rc = rp_state_check(f->table, err);
    }
    for (size_t k = 0; k < t->size && rc == 0; k++)
        if (!owner[k])
            rc = rp_error_set(err, EINVAL, "%s: byte %zu of %u belongs to no field", t->name, k, t->size);
    free(owner);
    if (rc == 0)
        rc = check_tags(t, err);
    return rc == 0 ? check_counters(t, err) : rc;
}
