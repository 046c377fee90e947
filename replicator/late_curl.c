/* libcurl, loaded by the first lease in etcd; see core/late.h. */
#include "core/late.h"

#include <curl/curl.h>
#include <stdarg.h>

#undef curl_easy_setopt
#undef curl_easy_getinfo

#define LIB "libcurl.so.4"

RP_LATE(LIB, CURL *, NULL, curl_easy_init, (void), ())
RP_LATE(LIB, CURLcode, CURLE_FAILED_INIT, curl_easy_perform, (CURL *c), (c))
RP_LATE(LIB, const char *, LIB " is not installed", curl_easy_strerror, (CURLcode rc), (rc))
RP_LATE(LIB, struct curl_slist *, NULL, curl_slist_append, (struct curl_slist *list, const char *text), (list, text))

/* Longs, pointers and offsets all travel as one word on the one architecture there is. */
CURLcode curl_easy_setopt(CURL *c, CURLoption option, ...)
{
    static _Atomic(void *) cache;
    CURLcode (*fn)(CURL *, CURLoption, ...) = (CURLcode (*)(CURL *, CURLoption, ...))rp_late(&cache, LIB, "curl_easy_setopt");
    va_list ap;
    void *value;

    va_start(ap, option);
    value = va_arg(ap, void *);
    va_end(ap);
    return fn ? fn(c, option, value) : CURLE_FAILED_INIT;
}

CURLcode curl_easy_getinfo(CURL *c, CURLINFO info, ...)
{
    static _Atomic(void *) cache;
    CURLcode (*fn)(CURL *, CURLINFO, ...) = (CURLcode (*)(CURL *, CURLINFO, ...))rp_late(&cache, LIB, "curl_easy_getinfo");
    va_list ap;
    void *value;

    va_start(ap, info);
    value = va_arg(ap, void *);
    va_end(ap);
    return fn ? fn(c, info, value) : CURLE_FAILED_INIT;
}

void curl_easy_cleanup(CURL *c)
{
    static _Atomic(void *) cache;
    void (*fn)(CURL *) = (void (*)(CURL *))rp_late(&cache, LIB, "curl_easy_cleanup");

    if (fn)
        fn(c);
}

void curl_slist_free_all(struct curl_slist *list)
{
    static _Atomic(void *) cache;
    void (*fn)(struct curl_slist *) = (void (*)(struct curl_slist *))rp_late(&cache, LIB, "curl_slist_free_all");

    if (fn)
        fn(list);
}
