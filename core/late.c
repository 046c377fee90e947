#include "core/late.h"

#include <dlfcn.h>
#include <stddef.h>

void *rp_late(_Atomic(void *) *cache, const char *library, const char *name)
{
    void *fn = atomic_load_explicit(cache, memory_order_relaxed);
    void *lib;

    if (fn)
        return fn;
    lib = dlopen(library, RTLD_NOW | RTLD_LOCAL);   /* counted; it stays for the life of the process */
    fn = lib ? dlsym(lib, name) : NULL;
    atomic_store_explicit(cache, fn, memory_order_relaxed);     /* the same value whoever stores it */
    return fn;
}
