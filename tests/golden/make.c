/*
 * Writes the golden streams that can be made anywhere: tests/golden/make DIR. (v1-machine.rps cannot: it is the checkpoint of
 * a real VM, see README.md.) A golden file is never written again once it has landed: it is what some archive holds.
 */
#include "tests/unit/stream_builder.h"

int main(int argc, char **argv)
{
    struct sb s;
    char path[4096];
    if (argc != 2) {
        fputs("usage: make DIR\n", stderr);
        return 2;
    }
    sb_init(&s);
    sb_sample(&s, NULL);
    snprintf(path, sizeof(path), "%s/v1-sample.rps", argv[1]);
    FILE *f = fopen(path, "wbx");       /* x: what is there stays */
    if (!f || fwrite(s.b.data, 1, s.b.len, f) != s.b.len || fclose(f) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    sb_fini(&s);
    return 0;
}
