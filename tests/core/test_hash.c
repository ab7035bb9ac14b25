// SHA-256 against the examples of FIPS 180-4 and NIST's test vectors.
#include "check.h"
#include <melies/hash.h>

static void expect(const void *data, int64_t size, const char *hex) {
    uint8_t digest[32];
    char text[65];
    CHECK(mel_sha256(data, size, digest, NULL) == MEL_OK);
    for (int i = 0; i < 32; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    CHECK(strcmp(text, hex) == 0);
}

int main(void) {
    expect("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect(NULL, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const char *two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    expect(two, (int64_t)strlen(two), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = malloc(1000000);
    CHECK(million != NULL);
    if (million) {
        memset(million, 'a', 1000000);
        expect(million, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
    free(million);
    mel_error err = {0};
    uint8_t digest[32];
    CHECK(mel_sha256("a", -1, digest, &err) == MEL_EINVAL);
    CHECK(mel_sha256(NULL, 5, digest, &err) == MEL_EINVAL);
    CHECK(mel_sha256("a", 1, NULL, &err) == MEL_EINVAL);
    return CHECK_DONE();
}
