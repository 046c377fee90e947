/* Formatting, the serial port, and how a guest fails. */
#include "tests/guests/lib/guest.h"

#define SERIAL_PORT 0x3f8 /* COM1; LSR at +5, bit 5: transmitter empty (16550A data sheet) */

static size_t put_number(char *out, uint64_t v, unsigned base)
{
	char digits[20];
	size_t n = 0, i = 0;

	do {
		digits[n++] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	while (n)
		out[i++] = digits[--n];
	return i;
}

size_t rg_vformat(char *buf, size_t size, const char *fmt, va_list ap)
{
	size_t at = 0;

	for (; *fmt; fmt++) {
		char tmp[24];
		const char *s = tmp;
		size_t n = 1;

		if (*fmt != '%') {
			tmp[0] = *fmt;
		} else {
			bool wide = *++fmt == 'l';

			if (wide)
				fmt++;
			switch (*fmt) {
			case 's':
				s = va_arg(ap, const char *);
				n = strlen(s);
				break;
			case 'c':
				tmp[0] = (char)va_arg(ap, int);
				break;
			case 'd': {
				int64_t v = wide ? va_arg(ap, int64_t) : va_arg(ap, int);

				tmp[0] = '-';
				n = put_number(tmp + (v < 0), v < 0 ? 0 - (uint64_t)v : (uint64_t)v, 10) + (v < 0);
				break;
			}
			case 'u':
			case 'x': {
				uint64_t v = wide ? va_arg(ap, uint64_t) : va_arg(ap, unsigned);

				n = put_number(tmp, v, *fmt == 'u' ? 10 : 16);
				break;
			}
			default:
				tmp[0] = *fmt;
				break;
			}
		}
		for (; n && at + 1 < size; n--)
			buf[at++] = *s++;
	}
	if (size)
		buf[at] = 0;
	return at;
}

size_t rg_format(char *buf, size_t size, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	size_t n = rg_vformat(buf, size, fmt, ap);
	va_end(ap);
	return n;
}

static void serial_line(const char *s)
{
	for (; *s; s++)
		rg_out8(SERIAL_PORT, (uint8_t)*s);
	rg_out8(SERIAL_PORT, '\n');
}

void rg_log(const char *fmt, ...)
{
	char line[200];
	va_list ap;

	if (!RG_STATUS->log)
		return;
	va_start(ap, fmt);
	rg_vformat(line, sizeof(line), fmt, ap);
	va_end(ap);
	serial_line(line);
}

void rg_fail(enum rg_error error, const uint64_t args[4], const char *fmt, ...)
{
	struct rg_status *s = RG_STATUS;
	uint32_t none = RG_ERR_NONE;
	va_list ap;

	if (__atomic_compare_exchange_n(&s->error, &none, (uint32_t)error, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
		for (unsigned i = 0; args && i < 4; i++)
			s->error_args[i] = args[i];
		va_start(ap, fmt);
		rg_vformat(s->error_text, sizeof(s->error_text), fmt, ap);
		va_end(ap);
		s->done_tsc = rg_tsc();
		rg_store(&s->state, RG_STATE_FAILED);
		serial_line("guest: FAILED:");
		serial_line(s->error_text);
	}
	for (;;)
		__asm__ volatile("pause");
}
