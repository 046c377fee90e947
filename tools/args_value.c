/* Values on the command line, in QMP arguments and in URIs: sizes, durations, rates, numbers, MAC addresses. */
#include "tools/args.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct unit { const char *name; double factor; };

/* A decimal number, perhaps with a fraction, and a unit out of a table. False: not that. */
static bool number_unit(const char *text, const struct unit *units, size_t nunits, bool need_unit, uint64_t *out)
{
    if (!isdigit((unsigned char)*text))
        return false;       /* strtod would take signs, "inf", "nan" and hex */
    size_t digits = strspn(text, "0123456789.");
    char number[40];
    if (digits >= sizeof(number))
        return false;
    memcpy(number, text, digits);
    number[digits] = 0;
    char *end;
    double v = strtod(number, &end);
    if (*end)
        return false;
    const char *unit = text + digits;
    double factor = -1;
    if (!*unit && (!need_unit || v <= 0))
        factor = 1;
    for (size_t i = 0; i < nunits && factor < 0; i++)
        if (strcmp(unit, units[i].name) == 0)
            factor = units[i].factor;
    if (factor < 0 || v * factor >= 0x1p63)
        return false;
    *out = (uint64_t)llround(v * factor);
    return true;
}

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const struct unit size_units[] = {
    {"K", 0x1p10}, {"k", 0x1p10}, {"KB", 0x1p10}, {"KiB", 0x1p10}, {"M", 0x1p20}, {"m", 0x1p20}, {"MB", 0x1p20}, {"MiB", 0x1p20},
    {"G", 0x1p30}, {"g", 0x1p30}, {"GB", 0x1p30}, {"GiB", 0x1p30}, {"T", 0x1p40}, {"TB", 0x1p40}, {"TiB", 0x1p40}, {"B", 1},
};

int rp_parse_size(const char *what, const char *text, uint64_t *bytes, struct rp_error *err)
{
    if (number_unit(text, size_units, COUNT(size_units), false, bytes))
        return 0;
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s \"%s\": not a size; give a number with K, M, G or T, such as 512M", what, text);
}

int rp_parse_duration(const char *what, const char *text, uint64_t *ns, struct rp_error *err)
{
    static const struct unit units[] = {{"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"min", 60e9}, {"h", 3600e9}};
    if (number_unit(text, units, COUNT(units), true, ns))
        return 0;
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s \"%s\": not a duration; give a number with us, ms, s or m, such as 20ms",
                         what, text);
}

int rp_parse_rate(const char *what, const char *text, uint64_t *bytes_s, struct rp_error *err)
{
    static const struct unit bits[] = {{"kbit", 125}, {"Kbit", 125}, {"Mbit", 125e3}, {"Gbit", 125e6}, {"bit", 0.125}};
    if (number_unit(text, bits, COUNT(bits), true, bytes_s) || number_unit(text, size_units, COUNT(size_units), false, bytes_s))
        return 0;
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL,
                         "%s \"%s\": not a rate; give bytes per second, such as 100M, or bits, such as 1Gbit", what, text);
}

int rp_parse_uint(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *out, struct rp_error *err)
{
    char *end = NULL;
    unsigned long long v = 0;
    errno = 0;
    if (isdigit((unsigned char)*text))
        v = strtoull(text, &end, 10);
    if (!end || errno || *end)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s \"%s\": not a whole number", what, text);
    if (v < min || v > max)
        return rp_error_exit(err, RP_EXIT_USAGE, ERANGE, "%s %s: out of range; it must be between %llu and %llu", what, text,
                             (unsigned long long)min, (unsigned long long)max);
    *out = v;
    return 0;
}

int rp_parse_mac(const char *what, const char *text, uint8_t mac[6], struct rp_error *err)
{
    unsigned b[6];
    int used = 0;
    bool good = strlen(text) == 17 && sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &used) == 6 &&
                used == 17;
    if (!good)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s \"%s\": not a MAC address; give six bytes, such as 52:54:00:12:34:56", what, text);
    if (b[0] & 1)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s %s: a multicast address; the lowest bit of the first byte must be 0",
                             what, text);
    for (int i = 0; i < 6; i++)
        mac[i] = (uint8_t)b[i];
    return 0;
}
