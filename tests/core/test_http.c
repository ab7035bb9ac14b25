// POST against a server in a thread of this test: answers, limits, time, cancel, what is refused.
#define _GNU_SOURCE
#include "check.h"

#include <melies/http.h>
#include <pthread.h>

#include "../fixture/http_serve.h"

typedef struct server {
    int listener, port, requests;
    const char *mode;
    char request[65536];
    pthread_t thread;
} server;

static void *serve(void *user) {
    server *s = user;
    for (int i = 0; i < s->requests; i++) {
        int fd = serve_request(s->listener, s->request, sizeof s->request);
        if (fd < 0) return NULL;
        if (!strcmp(s->mode, "echo")) {
            char *body = strstr(s->request, "\r\n\r\n");
            serve_answer(fd, 200, body ? body + 4 : "", body ? strlen(body + 4) : 0);
        } else if (!strcmp(s->mode, "missing")) {
            serve_answer(fd, 404, "nothing here", 12);
        } else if (!strcmp(s->mode, "empty")) {
            serve_answer(fd, 200, "", 0);
        } else if (!strcmp(s->mode, "long")) {
            static char bytes[100000];
            memset(bytes, 'x', sizeof bytes);
            serve_answer(fd, 200, bytes, sizeof bytes);
        } else if (!strcmp(s->mode, "redirect")) {
            const char *text =
                "HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            serve_write(fd, text, strlen(text));
            close(fd);
        } else if (!strcmp(s->mode, "chunks")) {
            const char *text = "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
                               "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
            serve_write(fd, text, strlen(text));
            close(fd);
        } else if (!strcmp(s->mode, "broken")) {
            const char *text = "HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nhalf";
            serve_write(fd, text, strlen(text));
            close(fd);
        } else if (!strcmp(s->mode, "noise")) {
            serve_write(fd, "\x01\x02\x03 what\n", 9);
            close(fd);
        } else if (!strcmp(s->mode, "cancel")) {
            usleep(100000);
            mel_cancel();
            usleep(1500000);
            close(fd);
        } else {
            usleep(1000000); // too late
            close(fd);
        }
    }
    return NULL;
}

static char url[64];

static void begin(server *s, const char *mode, int requests) {
    memset(s, 0, sizeof *s);
    s->mode = mode;
    s->requests = requests;
    s->listener = serve_listen(&s->port);
    CHECK(s->listener >= 0);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/v1/x", s->port);
    CHECK(pthread_create(&s->thread, NULL, serve, s) == 0);
}

static void end(server *s) {
    shutdown(s->listener, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->listener);
}

static server s;

static void test_answers(void) {
    char *out = NULL;
    size_t size = 0;
    int status = 0;
    begin(&s, "echo", 2);
    mel_http_options options = {.headers = "Content-Type: application/json\nAuthorization: Bearer secret\n"};
    CHECK_OK(mel_http_post(url, "{\"a\":1}", 7, &options, &out, &size, &status, err));
    CHECK(size == 7 && !strcmp(out, "{\"a\":1}") && status == 200);
    CHECK(strstr(s.request, "POST /v1/x HTTP/1.1\r\n"));
    CHECK(strstr(s.request, "Authorization: Bearer secret\r\n") &&
          strstr(s.request, "Content-Type: application/json\r\n"));
    mel_free(out);
    char body[5000];
    memset(body, 'b', sizeof body);
    CHECK_OK(mel_http_post(url, body, sizeof body, NULL, &out, &size, &status, err));
    CHECK(size == sizeof body && !memcmp(out, body, size) && out[size] == 0);
    mel_free(out);
    end(&s);
    const char *modes[] = {"missing", "empty", "redirect", "chunks"}, *bodies[] = {"nothing here", "", "", "abcdefg"};
    int codes[] = {404, 200, 302, 200};
    for (int i = 0; i < 4; i++) {
        begin(&s, modes[i], 1);
        CHECK_OK(mel_http_post(url, "", 0, NULL, &out, &size, &status, err));
        CHECK(status == codes[i] && !strcmp(out, bodies[i]) && size == strlen(bodies[i]));
        mel_free(out);
        end(&s);
    }
}

static void test_limits(void) {
    char *out = NULL;
    size_t size = 0;
    int status = 0;
    begin(&s, "long", 2);
    mel_http_options options = {.limit_bytes = 99999};
    CHECK_FAILS(mel_http_post(url, "", 0, &options, &out, &size, &status, err), MEL_EFORMAT, "longer than 99999 bytes");
    options.limit_bytes = 100000;
    CHECK_OK(mel_http_post(url, "", 0, &options, &out, &size, &status, err));
    CHECK(size == 100000);
    mel_free(out);
    out = NULL;
    end(&s);
    begin(&s, "late", 1);
    options.timeout_ms = 200;
    double before = mel_seconds();
    CHECK_FAILS(mel_http_post(url, "", 0, &options, &out, &size, &status, err), MEL_EIO, "127.0.0.1");
    CHECK(mel_seconds() - before < 0.9);
    end(&s);
    for (int i = 0; i < 2; i++) {
        begin(&s, i ? "noise" : "broken", 1);
        CHECK_FAILS(mel_http_post(url, "", 0, NULL, &out, &size, &status, err), MEL_EIO, "127.0.0.1");
        end(&s);
    }
    CHECK(out == NULL);
}

static void test_cancel(void) {
    char *out = NULL;
    size_t size = 0;
    int status = 0;
    begin(&s, "cancel", 1);
    double before = mel_seconds();
    CHECK_FAILS(mel_http_post(url, "", 0, NULL, &out, &size, &status, err), MEL_ECANCELED, "canceled");
    CHECK(mel_seconds() - before < 1.4);
    CHECK_FAILS(mel_http_post(url, "", 0, NULL, &out, &size, &status, err), MEL_ECANCELED, "canceled");
    mel_cancel_clear();
    end(&s);
}

static void test_refused(void) {
    char *out = NULL;
    size_t size = 0;
    int status = 0;
    const char *schemes[] = {"file:///etc/passwd", "ftp://127.0.0.1/", "127.0.0.1", "", "httpx://a"};
    for (int i = 0; i < 5; i++)
        CHECK_FAILS(mel_http_post(schemes[i], "", 0, NULL, &out, &size, &status, err), MEL_EINVAL, "is no http://");
    CHECK_FAILS(mel_http_post("http://127.0.0.1:1/", "", 0, NULL, &out, &size, &status, err), MEL_EIO, "127.0.0.1:1");
    CHECK_FAILS(mel_http_post("http://[", "", 0, NULL, &out, &size, &status, err), MEL_EIO, "http://[");
    const char *headers[] = {"nonsense", ": x", "A: b\r\nC: d", "\nA: b"};
    for (int i = 0; i < 4; i++) {
        mel_http_options options = {.headers = headers[i]};
        CHECK_FAILS(
            mel_http_post("http://127.0.0.1:1/", "", 0, &options, &out, &size, &status, err), MEL_EINVAL, "header");
    }
    CHECK(out == NULL && size == 0 && status == 0);
}

static void test_memory(void) {
    int64_t live = mel_mem_live();
    for (int n = 1; n < 20; n++) {
        char *out = NULL;
        size_t size = 0;
        int status = 0;
        mel_error err;
        begin(&s, "long", 1);
        mel_mem_fail_nth(n);
        mel_status got = mel_http_post(url, "", 0, NULL, &out, &size, &status, &err);
        mel_mem_fail_nth(0);
        end(&s);
        CHECK(got == MEL_OK || (got == MEL_ENOMEM && !out));
        mel_free(out);
        CHECK(mel_mem_live() == live);
        if (got == MEL_OK) {
            CHECK(n > 1);
            return;
        }
    }
    CHECK(!"it never succeeds");
}

int main(void) {
    setenv("no_proxy", "127.0.0.1", 1);
    RUN(test_answers);
    RUN(test_limits);
    RUN(test_cancel);
    RUN(test_refused);
    RUN(test_memory);
    return CHECK_DONE();
}
