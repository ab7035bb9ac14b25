// HTTP by libcurl: the one place that includes its header.
#include <curl/curl.h>
#include <melies/http.h>

#include <pthread.h>
#include <string.h>
#include <strings.h>

enum {
    TIMEOUT_MS = 120000,
    CONNECT_MS = 10000,
    LIMIT_BYTES = 16 << 20,
    FIRST_BYTES = 16 << 10,
    LONGEST_HEADER = 8192
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static CURLcode ready;

static void start(void) {
    ready = curl_global_init(CURL_GLOBAL_DEFAULT);
}

// What has come so far, with room for a zero byte.
typedef struct answer {
    char *bytes;
    size_t size, room, limit;
    mel_status status; // why it was broken off
    mel_error *err;
} answer;

static size_t receive(char *data, size_t one, size_t count, void *user) {
    answer *a = user;
    size_t size = one * count;
    if (size > a->limit - a->size) {
        a->status = mel_fail(a->err, MEL_EFORMAT, "http: the answer is longer than %zu bytes", a->limit);
        return 0;
    }
    if (a->size + size + 1 > a->room) {
        size_t room = a->room ? a->room : FIRST_BYTES;
        while (room < a->size + size + 1)
            room *= 2;
        char *bytes = mel_alloc(room, a->err);
        if (!bytes) {
            a->status = MEL_ENOMEM;
            return 0;
        }
        if (a->size) memcpy(bytes, a->bytes, a->size);
        mel_free(a->bytes);
        a->bytes = bytes;
        a->room = room;
    }
    memcpy(a->bytes + a->size, data, size);
    a->size += size;
    return size;
}

static int progress(void *user, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d) {
    (void)user, (void)a, (void)b, (void)c, (void)d;
    return mel_canceled();
}

// "Name: value" lines as libcurl's list. A line that is no header would end the headers, or begin another.
static mel_status header_list(const char *lines, struct curl_slist **list, mel_error *err) {
    while (lines && *lines) {
        size_t size = strcspn(lines, "\n");
        char line[LONGEST_HEADER];
        const char *colon = memchr(lines, ':', size);
        if (size >= sizeof line)
            return mel_fail(err, MEL_EINVAL, "http: a header is longer than %d bytes", LONGEST_HEADER);
        if (!colon || colon == lines || memchr(lines, '\r', size))
            return mel_fail(err, MEL_EINVAL, "http: a header is not of the form 'Name: value'");
        memcpy(line, lines, size);
        line[size] = 0;
        struct curl_slist *longer = curl_slist_append(*list, line);
        if (!longer) return mel_fail(err, MEL_ENOMEM, "http: out of memory");
        *list = longer;
        lines += size + (lines[size] == '\n');
    }
    return MEL_OK;
}

static mel_status post(CURL *curl, struct curl_slist **headers, const char *url, const void *body, size_t size_bytes,
    const mel_http_options *options, answer *a, int *http_status, mel_error *err) {
    mel_status status = header_list(options->headers, headers, err);
    if (status) return status;
    char why[CURL_ERROR_SIZE] = "";
    long timeout = (long)(options->timeout_ms > 0 ? options->timeout_ms : TIMEOUT_MS);
    long connect = (long)(options->connect_ms > 0 ? options->connect_ms : CONNECT_MS);
    if (curl_easy_setopt(curl, CURLOPT_URL, url) || curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, why) ||
        curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https") ||
        curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L) || curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L) ||
        curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, timeout) ||
        curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, connect) || curl_easy_setopt(curl, CURLOPT_POST, 1L) ||
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, size_bytes ? body : "") ||
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)size_bytes) ||
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, *headers) ||
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive) || curl_easy_setopt(curl, CURLOPT_WRITEDATA, a) ||
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L) || curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, progress))
        return mel_fail(err, MEL_ENOMEM, "http: libcurl refused an option");
    CURLcode code = curl_easy_perform(curl);
    if (a->status) return a->status;
    if (code == CURLE_ABORTED_BY_CALLBACK) return mel_fail(err, MEL_ECANCELED, "canceled");
    if (code == CURLE_OUT_OF_MEMORY) return mel_fail(err, MEL_ENOMEM, "http: out of memory");
    if (code) return mel_fail(err, MEL_EIO, "%s: %s", url, *why ? why : curl_easy_strerror(code));
    long number = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &number);
    if (!a->bytes && !(a->bytes = mel_alloc(1, err))) return MEL_ENOMEM;
    a->bytes[a->size] = 0;
    *http_status = (int)number;
    return MEL_OK;
}

mel_status mel_http_post(const char *url, const void *body, size_t size_bytes, const mel_http_options *options,
    char **out, size_t *out_bytes, int *http_status, mel_error *err) {
    static const mel_http_options none;
    if (!options) options = &none;
    if (strncasecmp(url, "http://", 7) != 0 && strncasecmp(url, "https://", 8) != 0)
        return mel_fail(err, MEL_EINVAL, "http: '%s' is no http:// or https:// address", url);
    mel_status status = mel_check_cancel(err);
    if (status) return status;
    pthread_once(&once, start);
    if (ready) return mel_fail(err, MEL_EINTERNAL, "http: libcurl does not start: %s", curl_easy_strerror(ready));
    CURL *curl = curl_easy_init();
    if (!curl) return mel_fail(err, MEL_ENOMEM, "http: out of memory");
    uint64_t limit = options->limit_bytes ? options->limit_bytes : LIMIT_BYTES;
    answer a = {.limit = limit < SIZE_MAX / 4 ? (size_t)limit : SIZE_MAX / 4, .err = err};
    struct curl_slist *headers = NULL;
    int number = 0;
    status = post(curl, &headers, url, body, size_bytes, options, &a, &number, err);
    curl_easy_cleanup(curl);
    curl_slist_free_all(headers);
    if (status) {
        mel_free(a.bytes);
        return status;
    }
    *out = a.bytes;
    *out_bytes = a.size;
    *http_status = number;
    return MEL_OK;
}
