#include "replicator/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY_MIN 16u

static int unusable(struct rp_error *err, const char *path, const char *why)
{
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "key file %s: %s", path, why);
}

int rp_secret_load(const char *path, struct rp_secret *out, struct rp_error *err)
{
    uint8_t buf[256];
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return unusable(err, path, strerror(errno));
    ssize_t n = read(fd, buf, sizeof(buf));
    int rc = fstat(fd, &st);
    close(fd);
    if (n < 0 || rc < 0)
        return unusable(err, path, "cannot be read");
    if (st.st_mode & 0077)
        return unusable(err, path, "others may read it: chmod 600 it");
    while (n > 0 && (buf[n - 1] == '\n' || buf[n - 1] == '\r'))
        n--;
    if (n < (ssize_t)KEY_MIN || n > (ssize_t)sizeof(out->bytes))
        return unusable(err, path, "a key has 16 to 64 bytes (openssl rand -hex 32 makes one)");
    memcpy(out->bytes, buf, (size_t)n);
    out->len = (uint32_t)n;
    OPENSSL_cleanse(buf, sizeof(buf));
    return 0;
}

int rp_secret_nonce(uint8_t out[RP_NONCE_BYTES], struct rp_error *err)
{
    return getrandom(out, RP_NONCE_BYTES, 0) == RP_NONCE_BYTES ? 0 : rp_error_set(err, errno, "no random numbers: %s", strerror(errno));
}

void rp_secret_prove(const struct rp_secret *key, const char *label, const uint8_t mine[RP_NONCE_BYTES],
                     const uint8_t theirs[RP_NONCE_BYTES], const void *bound, uint32_t bound_len, uint8_t out[RP_PROOF_BYTES])
{
    uint8_t text[16 + 2 * RP_NONCE_BYTES + 256] = {0};
    uint32_t n = 16;
    strncpy((char *)text, label, 15);
    memcpy(text + n, mine, RP_NONCE_BYTES);
    memcpy(text + n + RP_NONCE_BYTES, theirs, RP_NONCE_BYTES);
    n += 2 * RP_NONCE_BYTES;
    if (bound_len > 256)
        bound_len = 256;
    memcpy(text + n, bound, bound_len);
    n += bound_len;
    unsigned len = RP_PROOF_BYTES;
    HMAC(EVP_sha256(), key->bytes, (int)key->len, text, n, out, &len);
}

bool rp_secret_equal(const uint8_t a[RP_PROOF_BYTES], const uint8_t b[RP_PROOF_BYTES])
{
    return CRYPTO_memcmp(a, b, RP_PROOF_BYTES) == 0;
}
