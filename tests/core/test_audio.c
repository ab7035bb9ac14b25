// Sound: samples of WAV files as they are, spectra and K-weighting beside sums written out, sound beside pictures,
// damaged bytes, no memory.
#include "media_help.h"

#include <melies/audio.h>
#include <melies/media.h>
#include <sys/stat.h>
#include <unistd.h>

static void put32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static int16_t sample(int64_t i, int c) {
    return (int16_t)lround(12000 * sin(0.06 * (double)i + c) + (double)((i * 37 + c) % 400));
}

static void write_wav(const char *path, int rate, int channels, int64_t count) {
    size_t size = (size_t)(count * channels * 2);
    uint8_t *bytes = malloc(44 + size);
    CHECK(bytes != NULL);
    if (!bytes) return;
    memcpy(bytes, "RIFF....WAVEfmt ", 16);
    put32(bytes + 4, (uint32_t)(36 + size));
    put32(bytes + 16, 16);
    put32(bytes + 20, 1 | (uint32_t)channels << 16);
    put32(bytes + 24, (uint32_t)rate);
    put32(bytes + 28, (uint32_t)(rate * channels * 2));
    put32(bytes + 32, (uint32_t)(channels * 2) | 16u << 16);
    memcpy(bytes + 36, "data", 4);
    put32(bytes + 40, (uint32_t)size);
    for (int64_t i = 0; i < count; i++)
        for (int c = 0; c < channels; c++) {
            uint16_t v = (uint16_t)sample(i, c);
            bytes[44 + 2 * (i * channels + c)] = (uint8_t)v;
            bytes[45 + 2 * (i * channels + c)] = (uint8_t)(v >> 8);
        }
    store(path, bytes, 44 + size);
    free(bytes);
}

// Samples that the reader gives, in parts of `part`.
static mel_status count_samples(
    const char *path, const mel_audio_read_options *options, int64_t part, int64_t *count, mel_error *err) {
    mel_audio_reader *reader = NULL;
    mel_status status = mel_audio_reader_open(path, options, &reader, err);
    *count = 0;
    while (status == MEL_OK && *count < 1000000) {
        mel_tensor *t = NULL;
        status = mel_audio_reader_next(reader, part, &t, err);
        if (status != MEL_OK || !t) break;
        *count += mel_tensor_shape(t)[0];
        mel_tensor_unref(t);
    }
    mel_audio_reader_close(reader);
    return status;
}

static void test_samples(void) {
    write_wav(in("two.wav"), 44100, 2, 10000);
    mel_audio_reader *reader = NULL;
    mel_audio_info info;
    CHECK_OK(mel_audio_reader_open(in("two.wav"), NULL, &reader, err));
    mel_audio_reader_info(reader, &info);
    CHECK(info.rate == 44100 && info.channels == 2 && strcmp(info.codec, "pcm_s16le") == 0);
    CHECK_NEAR(info.duration_s, 10000 / 44100.0, 1e-6);
    int64_t at = 0;
    bool same = true;
    for (;;) {
        mel_tensor *t = NULL;
        CHECK_OK(mel_audio_reader_next(reader, 777, &t, err));
        if (!t) break;
        const float *x = mel_tensor_data(t);
        int64_t n = mel_tensor_shape(t)[0];
        CHECK(n == 777 || at + n == 10000);
        for (int64_t i = 0; i < n; i++)
            for (int c = 0; c < 2; c++)
                same = same && x[2 * i + c] == (float)sample(at + i, c) / 32768;
        at += n;
        mel_tensor_unref(t);
    }
    CHECK(same && at == 10000);
    mel_audio_reader_close(reader);

    mel_tensor *t = NULL;
    mel_audio_read_options mono = {0, 1};
    CHECK_OK(mel_audio_reader_open(in("two.wav"), &mono, &reader, err));
    CHECK_OK(mel_audio_reader_next(reader, 100, &t, err));
    CHECK(mel_tensor_shape(t)[1] == 1);
    CHECK_NEAR(((float *)mel_tensor_data(t))[50], (sample(50, 0) + sample(50, 1)) / 65536.0, 1e-6);
    mel_tensor_unref(t);
    mel_audio_reader_close(reader);
    int64_t count;
    mel_audio_read_options slow = {16000, 0};
    CHECK_OK(count_samples(in("two.wav"), &slow, 500, &count, err));
    CHECK(llabs(count - 10000LL * 16000 / 44100) <= 2);

    mel_audio_read_options wrong = {10, 0}, many = {0, 3};
    CHECK_FAILS(mel_audio_reader_open(in("two.wav"), &wrong, &reader, err), MEL_EINVAL, "a rate of 10");
    CHECK_FAILS(mel_audio_reader_open(in("two.wav"), &many, &reader, err), MEL_EINVAL, "3 channels");
    CHECK_FAILS(mel_audio_reader_open(in("none.wav"), NULL, &reader, err), MEL_EIO, "none.wav");
}

static void test_spectrum(void) {
    enum {
        N = 300,
        W = 64,
        HOP = 40
    };
    mel_tensor *x = NULL, *power = NULL;
    CHECK_OK(mel_tensor_create(MEL_F32, 2, (int64_t[]){N, 1}, &x, err));
    float *p = mel_tensor_data(x);
    for (int i = 0; i < N; i++)
        p[i] = (float)(random_number() % 2001) / 1000 - 1;
    CHECK_OK(mel_power_spectrum(x, -W / 2, W, HOP, 8, &power, err));
    const float *q = mel_tensor_data(power);
    double worst = 0;
    for (int k = 0; k < 8; k++)
        for (int f = 0; f <= W / 2; f++) {
            double re = 0, im = 0;
            for (int i = 0; i < W; i++) {
                int at = k * HOP - W / 2 + i;
                double v = at >= 0 && at < N ? p[at] * (1 - cos(2 * M_PI * i / W)) * 2 / W : 0;
                re += v * cos(2 * M_PI * f * i / W);
                im -= v * sin(2 * M_PI * f * i / W);
            }
            worst = fmax(worst, fabs(re * re + im * im - q[k * (W / 2 + 1) + f]));
        }
    CHECK(worst < 1e-5);
    mel_tensor_unref(power);
    for (int i = 0; i < N; i++)
        p[i] = (float)(0.5 * sin(2 * M_PI * 8 * i / W));
    CHECK_OK(mel_power_spectrum(x, 0, W, 1, 1, &power, err));
    CHECK_NEAR(((float *)mel_tensor_data(power))[8], 0.25, 1e-5);
    mel_tensor_unref(power);
    CHECK_FAILS(mel_power_spectrum(x, 0, 60, 1, 1, &power, err), MEL_EINVAL, "power of two");
    CHECK_FAILS(mel_power_spectrum(x, 0, 64, 0, 1, &power, err), MEL_EINVAL, "power of two");
    mel_tensor *wide = NULL;
    CHECK_OK(mel_tensor_zeros(MEL_F32, 2, (int64_t[]){N, 2}, &wide, err));
    CHECK_FAILS(mel_power_spectrum(wide, 0, 64, 1, 1, &power, err), MEL_EINVAL, "[300, 2]");
    mel_tensor_unref(wide);
    mel_tensor_unref(x);
}

// A sine of 997 Hz at full scale on one channel reads -3.01 LUFS (BS.1770-4, annex 1).
static void test_k_power(void) {
    enum {
        N = 48000,
        BLOCK = 4800
    };
    mel_tensor *x = NULL, *power = NULL;
    CHECK_OK(mel_tensor_create(MEL_F32, 2, (int64_t[]){N, 1}, &x, err));
    float *p = mel_tensor_data(x);
    for (int i = 0; i < N; i++)
        p[i] = (float)sin(2 * M_PI * 997 * i / 48000);
    mel_k_state filter = {0}, parts = {0};
    CHECK_OK(mel_k_power(x, BLOCK, &filter, &power, err));
    float whole[10];
    memcpy(whole, mel_tensor_data(power), sizeof whole);
    CHECK_NEAR(-0.691 + 10 * log10(whole[9]), -3.01, 0.02);
    mel_tensor_unref(power);
    for (int k = 0; k < 10; k++) { // the state goes on
        mel_tensor *part = NULL;
        CHECK_OK(mel_tensor_slice(x, 0, k * BLOCK, BLOCK, &part, err));
        CHECK_OK(mel_k_power(part, BLOCK, &parts, &power, err));
        CHECK(((float *)mel_tensor_data(power))[0] == whole[k]);
        mel_tensor_unref(power);
        mel_tensor_unref(part);
    }
    CHECK_FAILS(mel_k_power(x, 7, &filter, &power, err), MEL_EINVAL, "no whole blocks of 7");
    mel_tensor_unref(x);
}

// 12 frames at 8 a second: 1.5 s.
static mel_status write_film(const char *path, const char *audio, double from_s, mel_error *err) {
    mel_tensor *clip = NULL;
    mel_status status = mel_tensor_zeros(MEL_U8, 4, (int64_t[]){12, 32, 48, 3}, &clip, err);
    if (status != MEL_OK) return status;
    mel_video_write_options options = {
        .fps_num = 8, .fps_den = 1, .audio = audio, .audio_from_s = from_s, .threads = 1};
    mel_video_writer *writer = NULL;
    status = mel_video_writer_open(path, &options, &writer, err);
    if (status == MEL_OK) {
        status = mel_video_writer_write(writer, clip, err);
        if (status == MEL_OK)
            status = mel_video_writer_finish(writer, err);
        else
            mel_video_writer_abort(writer);
    }
    mel_tensor_unref(clip);
    return status;
}

static void test_beside_pictures(void) {
    write_wav(in("long.wav"), 48000, 1, 96000);
    write_wav(in("short.wav"), 48000, 1, 24000);
    static const char *const names[] = {"film.mp4", "film.webm"};
    for (int i = 0; i < 2; i++) {
        for (int s = 0; s < 3; s++) { // cut off, silence after it, a copy of what was made
            const char *audio = s == 0 ? in("long.wav") : s == 1 ? in("short.wav") : in(names[i]);
            int64_t count;
            if (s == 2) {
                CHECK_OK(write_film(in("silent.mp4"), NULL, 0, err));
                CHECK_OK(mel_audio_add(in("silent.mp4"), audio, 0, in("again.mp4"), err));
            } else {
                CHECK_OK(write_film(in(names[i]), audio, 0, err));
            }
            CHECK_OK(count_samples(in(s == 2 ? "again.mp4" : names[i]), NULL, 5000, &count, err));
            CHECK(llabs(count - 72000) < 1300);
        }
        mel_video_reader *reader = NULL;
        mel_video_info info;
        CHECK_OK(mel_video_reader_open(in(names[i]), NULL, &reader, err));
        mel_video_reader_info(reader, &info);
        CHECK(info.has_audio);
        mel_video_reader_close(reader);
    }
    CHECK_FAILS(write_film(in("film.gif"), in("long.wav"), 0, err), MEL_EINVAL, "holds no sound");
    CHECK_FAILS(write_film(in("film.mp4"), in("long.wav"), -1, err), MEL_EINVAL, "sound from -1 s");
    CHECK_FAILS(write_film(in("film.mp4"), in("none.wav"), 0, err), MEL_EIO, "none.wav");
    CHECK_FAILS(write_film(in("film.mp4"), in("silent.mp4"), 0, err), MEL_EFORMAT, "has no sound");
    CHECK_FAILS(mel_audio_add(in("long.wav"), in("long.wav"), 0, in("x.mp4"), err), MEL_EFORMAT, "no pictures");
    CHECK(access(in("x.mp4"), F_OK) != 0);
}

static void test_damaged(void) {
    static const char *const names[] = {"two.wav", "film.mp4", "film.webm"};
    static uint8_t whole[1 << 20], copy[1 << 20];
    int64_t live = mel_mem_live();
    for (int n = 0; n < 3; n++) {
        size_t size = load(in(names[n]), whole, sizeof whole);
        CHECK(size > 100 && size < sizeof whole);
        int failed = 0;
        for (int round = 0; round < 60; round++) {
            memcpy(copy, whole, size);
            size_t range = round % 2 ? size : size < 400 ? size : 400;
            for (int k = 0; k < 1 + round % 8; k++)
                copy[random_number() % range] = (uint8_t)random_number();
            store(in("damaged"), copy, round % 5 == 0 ? random_number() % size : size);
            int64_t count;
            mel_error e = {0}, f = {0};
            mel_status status = count_samples(in("damaged"), NULL, 3000, &count, &e);
            CHECK(status == MEL_OK || e.message[0]);
            failed += status != MEL_OK;
            if (round % 3 == 0) {
                status = mel_audio_add(in("silent.mp4"), in("damaged"), 0, in("out.mp4"), &f);
                CHECK(status == MEL_OK || f.message[0]);
                status = mel_audio_add(in("damaged"), in("two.wav"), 0, in("out.webm"), &f);
                CHECK(status == MEL_OK || f.message[0]);
            }
            CHECK(mel_mem_live() == live);
        }
        printf("     %s: %d of 60 refused\n", names[n], failed);
    }
    size_t size = load(in("two.wav"), whole, sizeof whole);
    store(in("cut.wav"), whole, size / 4);
    int64_t count;
    CHECK_FAILS(count_samples(in("cut.wav"), NULL, 3000, &count, err), MEL_EFORMAT, "cut short after");
}

static void test_allocations(void) {
    int64_t live = mel_mem_live();
    for (int64_t nth = 1; nth < 100; nth++) {
        mel_error e = {0};
        mel_mem_fail_nth(nth);
        mel_status status = mel_audio_add(in("silent.mp4"), in("short.wav"), 0.1, in("out.mp4"), &e);
        mel_mem_fail_nth(0);
        CHECK(status == MEL_OK || (status == MEL_ENOMEM && e.message[0]));
        CHECK(mel_mem_live() == live);
        if (status == MEL_OK) break;
        CHECK(nth < 99);
    }
}

int main(void) {
    strcpy(folder, "/tmp/melies-audio-XXXXXX");
    if (!mkdtemp(folder)) return 1;
    RUN(test_samples);
    RUN(test_spectrum);
    RUN(test_k_power);
    RUN(test_beside_pictures);
    RUN(test_damaged);
    RUN(test_allocations);
    CHECK(mel_mem_live() == 0);
    char command[128];
    snprintf(command, sizeof command, "test -z \"$(ls -A '%s' | grep partial)\" && rm -rf '%s'", folder, folder);
    CHECK(system(command) == 0);
    return CHECK_DONE();
}
