/* The command line: words of key=value. A word nobody knows fails the guest: a mistyped test must not pass. */
#include "tests/guests/lib/guest.h"

static const char *const common_keys[] = { "run", "end", "log", "gap", "tsc_hz", "smp", "pci", "bars", NULL };

static bool known(const char *word, size_t length, const char *const *keys)
{
	for (; *keys; keys++)
		if (strlen(*keys) == length && memcmp(*keys, word, length) == 0)
			return true;
	return false;
}

void rg_cmdline_keys(const char *const *keys)
{
	const char *p = RG_STATUS->cmdline;

	for (;;) {
		while (*p == ' ')
			p++;
		if (!*p)
			return;
		const char *word = p;

		while (*p && *p != ' ' && *p != '=')
			p++;
		size_t length = (size_t)(p - word);

		if (*p != '=' || (!known(word, length, common_keys) && !known(word, length, keys)))
			rg_fail(RG_ERR_CMDLINE, NULL, "command line: no such key: %s", word);
		while (*p && *p != ' ')
			p++;
	}
}

bool rg_cmdline_text(const char *key, char *buf, size_t size)
{
	const char *p = RG_STATUS->cmdline;
	size_t length = strlen(key);

	for (; *p; p++) {
		if ((p == RG_STATUS->cmdline || p[-1] == ' ') && memcmp(p, key, length) == 0 && p[length] == '=') {
			size_t n = 0;

			for (p += length + 1; *p && *p != ' ' && n + 1 < size; p++)
				buf[n++] = *p;
			buf[n] = 0;
			return true;
		}
	}
	return false;
}

/* A number with an optional suffix out of `units`: pairs of name and factor, ends with a NULL name. */
struct unit {
	const char *name;
	uint64_t factor;
};

static uint64_t number(const char *key, uint64_t otherwise, const struct unit *units)
{
	char text[32];
	uint64_t v = 0;
	const char *p = text;

	if (!rg_cmdline_text(key, text, sizeof(text)))
		return otherwise;
	if (p[0] == '0' && p[1] == 'x') {
		for (p += 2; (*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'f'); p++)
			v = v << 4 | (uint64_t)(*p <= '9' ? *p - '0' : *p - 'a' + 10);
	} else {
		for (; *p >= '0' && *p <= '9'; p++)
			v = v * 10 + (uint64_t)(*p - '0');
	}
	if (p == text)
		rg_fail(RG_ERR_CMDLINE, NULL, "command line: %s=%s is not a number", key, text);
	if (!*p)
		return v;
	for (; units->name; units++)
		if (strlen(units->name) == strlen(p) && memcmp(units->name, p, strlen(p)) == 0)
			return v * units->factor;
	rg_fail(RG_ERR_CMDLINE, NULL, "command line: %s=%s: no such unit", key, text);
}

uint64_t rg_cmdline_size(const char *key, uint64_t otherwise)
{
	static const struct unit sizes[] = { { "K", 1 << 10 }, { "M", 1 << 20 }, { "G", 1 << 30 }, { NULL, 0 } };

	return number(key, otherwise, sizes);
}

uint64_t rg_cmdline_number(const char *key, uint64_t otherwise)
{
	static const struct unit counts[] = { { "k", 1000 }, { NULL, 0 } };

	return number(key, otherwise, counts);
}

uint64_t rg_cmdline_time_ns(const char *key, uint64_t otherwise)
{
	static const struct unit times[] = { { "ns", 1 }, { "us", 1000 }, { "ms", 1000000 }, { "s", 1000000000 }, { NULL, 0 } };

	return number(key, otherwise, times);
}

uint32_t rg_cmdline_choice(const char *key, const char *const *names, uint32_t otherwise)
{
	char text[32];

	if (!rg_cmdline_text(key, text, sizeof(text)))
		return otherwise;
	for (uint32_t i = 0; names[i]; i++)
		if (strlen(names[i]) == strlen(text) && memcmp(names[i], text, strlen(text)) == 0)
			return i;
	rg_fail(RG_ERR_CMDLINE, NULL, "command line: %s=%s: no such choice", key, text);
}
