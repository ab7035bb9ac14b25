// Readers and writers: round trips, colours, time, metadata, temporary names, bad input, memory.
#include "media_help.h"

#include <dirent.h>
#include <errno.h>
#include <melies/media.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

// Files in the folder whose names hold text.
static int files_with(const char *text) {
    int count = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_name[0] != '.' || entry->d_name[1] > '.') count += strstr(entry->d_name, text) != NULL;
    closedir(dir);
    return count;
}

static long file_size(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 ? (long)info.st_size : -1;
}

// A smooth picture that moves with number; the top left holds the number as 16 black or white squares, 8 x 8 pixels.
static mel_tensor *picture(int w, int h, int number) {
    mel_tensor *t = NULL;
    CHECK_OK(mel_tensor_create(MEL_U8, 3, (int64_t[]){h, w, 3}, &t, err));
    uint8_t *p = mel_tensor_data(t);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++, p += 3) {
            p[0] = (uint8_t)(128 + 100 * sin((x + number * 2) * 0.05));
            p[1] = (uint8_t)(128 + 100 * cos((y - number) * 0.06));
            p[2] = (uint8_t)(128 + 60 * sin((x + y + number) * 0.04));
            if (y < 8 && x < 128) p[0] = p[1] = p[2] = number >> (x / 8) & 1 ? 235 : 20;
        }
    return t;
}

static int number_of(const mel_tensor *t) {
    const uint8_t *p = mel_tensor_data(t);
    int64_t w = mel_tensor_shape(t)[1];
    int number = 0;
    for (int bit = 0; bit < 16; bit++)
        if (p[(4 * w + bit * 8 + 4) * 3 + 1] > 127) number |= 1 << bit;
    return number;
}

static double psnr(const mel_tensor *a, const mel_tensor *b) {
    CHECK(mel_tensor_numel(a) == mel_tensor_numel(b));
    if (mel_tensor_numel(a) != mel_tensor_numel(b)) return 0;
    const uint8_t *p = mel_tensor_data(a), *q = mel_tensor_data(b);
    double sum = 0;
    int64_t n = mel_tensor_numel(a);
    for (int64_t i = 0; i < n; i++)
        sum += (p[i] - q[i]) * (p[i] - q[i]);
    return sum == 0 ? 99 : 10 * log10(255.0 * 255.0 * (double)n / sum);
}

static void write_clip(const char *path, int w, int h, int count, const mel_video_write_options *options) {
    mel_video_writer *writer = NULL;
    CHECK_OK(mel_video_writer_open(path, options, &writer, err));
    if (!writer) return;
    for (int i = 0; i < count; i++) {
        mel_tensor *t = picture(w, h, i);
        CHECK_OK(mel_video_writer_write(writer, t, err));
        mel_tensor_unref(t);
    }
    CHECK(mel_video_writer_frames(writer) == count);
    CHECK_OK(mel_video_writer_finish(writer, err));
}

static const char *tag_of(const mel_video_reader *reader, const char *name) {
    const char *key, *value;
    for (int i = 0; mel_video_reader_tag(reader, i, &key, &value); i++)
        if (strcmp(key, name) == 0) return value;
    return "";
}

static const char *const tags[] = {"melies_recipe", "text_to_video", "melies_params",
    "{\"prompt\": \"a \\\"red\\\" kite & <sky>\",\n \"steps\": 20}", "melies_seed", "42", "title", "caf\xc3\xa9 = 1"};

static void check_tags(const mel_video_reader *reader) {
    for (int i = 0; i < 4; i++) {
        CHECK(strcmp(tag_of(reader, tags[2 * i]), tags[2 * i + 1]) == 0);
        if (strcmp(tag_of(reader, tags[2 * i]), tags[2 * i + 1]) != 0)
            fprintf(stderr, "  %s: '%s'\n", tags[2 * i], tag_of(reader, tags[2 * i]));
    }
}

// Every format: what was written comes back, with its rate, number of frames and metadata.
static void test_round_trips(void) {
    static const struct {
        const char *name, *codec;
        double psnr;
        int w, h;
    } cases[] = {{"a.mp4", NULL, 33, 160, 96}, {"b.mp4", "av1", 30, 160, 96}, {"c.webm", "vp9", 30, 160, 96},
        {"d.webm", "av1", 30, 160, 96}, {"e.gif", NULL, 25, 161, 97}, {"f-%03d.png", NULL, 99, 161, 97},
        {"g-%03d.jpg", NULL, 33, 161, 97}, {"h.webp", NULL, 30, 161, 97}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mel_video_write_options options = {
            .codec = cases[i].codec, .fps_num = 25, .fps_den = 1, .metadata = tags, .metadata_count = 4};
        int count = 30;
        write_clip(in(cases[i].name), cases[i].w, cases[i].h, count, &options);
        CHECK(files_with("partial") == 0);
        mel_video_reader *reader = NULL;
        mel_video_read_options read = {.fps_num = strchr(cases[i].name, '%') ? 25 : 0, .fps_den = 1};
        if (!read.fps_num) read.fps_den = 0;
        CHECK_OK(mel_video_reader_open(in(cases[i].name), &read, &reader, err));
        if (!reader) continue;
        mel_video_info info;
        mel_video_reader_info(reader, &info);
        CHECK(info.width == cases[i].w && info.height == cases[i].h);
        CHECK_NEAR(info.fps, 25, 0.01);
        CHECK(info.frames == count || info.frames == -1);
        CHECK(!info.has_audio && !info.is_image);
        if (!strchr(cases[i].name, '%')) check_tags(reader);
        double worst = 99;
        int got = 0;
        for (;; got++) {
            mel_tensor *t = NULL;
            double time = -1;
            CHECK_OK(mel_video_reader_next(reader, &t, &time, err));
            if (!t) break;
            mel_tensor *want = picture(cases[i].w, cases[i].h, got);
            double p = psnr(t, want);
            worst = p < worst ? p : worst;
            CHECK(number_of(t) == got);
            CHECK_NEAR(time, got / 25.0, 0.006);
            mel_tensor_unref(want);
            mel_tensor_unref(t);
        }
        CHECK(got == count);
        printf("     %-10s %-4s worst frame %.1f dB\n", cases[i].name, cases[i].codec ? cases[i].codec : "", worst);
        CHECK(worst >= cases[i].psnr);
        mel_video_reader_close(reader);
    }
    CHECK(files_with("f-") == 30 && files_with("g-") == 30);
}

static void test_images(void) {
    static const char *const names[] = {"i.png", "i.jpg", "i.webp", "i.gif"};
    static const double bounds[] = {99, 33, 30, 25};
    mel_tensor *image = picture(131, 77, 5);
    for (int i = 0; i < 4; i++) {
        mel_video_write_options options = {.metadata = tags, .metadata_count = 4};
        CHECK_OK(mel_image_write(in(names[i]), image, &options, err));
        mel_tensor *back = NULL;
        CHECK_OK(mel_image_read(in(names[i]), &back, err));
        if (!back) continue;
        double p = psnr(image, back);
        printf("     %s %.1f dB\n", names[i], p);
        CHECK(p >= bounds[i]);
        mel_tensor_unref(back);
        mel_video_reader *reader = NULL;
        CHECK_OK(mel_video_reader_open(in(names[i]), NULL, &reader, err));
        if (!reader) continue;
        mel_video_info info;
        mel_video_reader_info(reader, &info);
        CHECK(i == 3 || info.is_image);
        check_tags(reader);
        mel_video_reader_close(reader);
    }
    mel_video_write_options full = {.full_chroma = true, .quality = 98};
    mel_tensor *back = NULL;
    CHECK_OK(mel_image_write(in("full.jpeg"), image, &full, err));
    CHECK_OK(mel_image_read(in("full.jpeg"), &back, err));
    CHECK(psnr(image, back) > 40);
    mel_tensor_unref(back);
    CHECK_FAILS(mel_image_read(in("none.jpg"), &back, err), MEL_EIO, "No such file");
    mel_tensor_unref(image);
}

// Pure colours through H.264's BT.709 and through the other formats.
static void test_colours(void) {
    static const uint8_t colours[][3] = {{255, 0, 0}, {0, 255, 0}, {0, 0, 255}, {255, 255, 255}, {0, 0, 0},
        {128, 128, 128}, {255, 255, 0}, {0, 255, 255}, {255, 0, 255}, {200, 120, 40}};
    static const char *const names[] = {
        "colour.mp4", "colour.webm", "colour.gif", "colour.webp", "colour.png", "colour.jpg"};
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        int worst = 0;
        for (size_t c = 0; c < sizeof colours / sizeof *colours; c++) {
            mel_tensor *t = NULL, *back = NULL;
            CHECK_OK(mel_tensor_create(MEL_F32, 3, (int64_t[]){64, 64, 3}, &t, err));
            float *p = mel_tensor_data(t);
            for (int i = 0; i < 64 * 64 * 3; i++)
                p[i] = colours[c][i % 3] / 255.0f;
            mel_video_write_options options = {.crf_set = n < 2, .crf = n < 2 ? 4 : 0};
            CHECK_OK(mel_image_write(in(names[n]), t, &options, err));
            CHECK_OK(mel_image_read(in(names[n]), &back, err));
            if (back) {
                const uint8_t *q = mel_tensor_data(back);
                for (int k = 0; k < 3; k++) {
                    int e = abs(q[(32 * 64 + 32) * 3 + k] - colours[c][k]);
                    worst = e > worst ? e : worst;
                }
            }
            mel_tensor_unref(back);
            mel_tensor_unref(t);
        }
        printf("     %s: off by %d at most\n", names[n], worst);
        CHECK(worst <= (n == 4 ? 0 : n == 3 ? 6 : 4));
    }
}

static int next_number(mel_video_reader *reader) {
    mel_tensor *t = NULL;
    CHECK_OK(mel_video_reader_next(reader, &t, NULL, err));
    if (!t) return -1;
    int number = number_of(t);
    mel_tensor_unref(t);
    return number;
}

static void test_seek(void) {
    static const char *const names[] = {"s.mp4", "s.webm", "s.gif", "s-%04d.png", "s.webp"};
    for (int n = 0; n < 5; n++) {
        int count = n == 0 ? 600 : 120;
        mel_video_write_options options = {.fps_num = 30000, .fps_den = 1001, .preset = n == 0 ? "veryfast" : NULL};
        if (n == 2) options.fps_num = 25, options.fps_den = 1;
        write_clip(in(names[n]), 128, 32, count, &options);
        mel_video_reader *reader = NULL;
        mel_video_read_options read = {.fps_num = n == 3 ? 30000 : 0, .fps_den = n == 3 ? 1001 : 0};
        CHECK_OK(mel_video_reader_open(in(names[n]), &read, &reader, err));
        if (!reader) continue;
        double fps = (double)options.fps_num / options.fps_den;
        static const int to[] = {0, 1, 7, 119, 3, 60, 61, 59, 0, 118};
        for (int i = 0; i < 10; i++) {
            int want = to[i] * (count / 120);
            CHECK_OK(mel_video_reader_seek(reader, want / fps, err));
            int got = next_number(reader);
            CHECK(got == want);
            if (got != want) fprintf(stderr, "  %s: seek to frame %d gave %d\n", names[n], want, got);
            CHECK(next_number(reader) == (want + 1 < count ? want + 1 : -1));
            // within a frame
            CHECK_OK(mel_video_reader_seek(reader, (want + 0.6) / fps, err));
            CHECK(next_number(reader) == want);
        }
        CHECK_OK(mel_video_reader_seek(reader, 1000, err));
        CHECK(next_number(reader) == -1);
        CHECK_OK(mel_video_reader_seek(reader, 0, err));
        CHECK(next_number(reader) == 0);
        CHECK_FAILS(mel_video_reader_seek(reader, -1, err), MEL_EINVAL, "seek");
        CHECK_FAILS(mel_video_reader_seek(reader, NAN, err), MEL_EINVAL, "seek");
        mel_video_reader_close(reader);
    }
}

// 30 frames a second read at other rates and sizes: each frame out is the one nearest in time.
static void test_rates_and_sizes(void) {
    mel_video_write_options options = {.fps_num = 30, .fps_den = 1};
    write_clip(in("r.mp4"), 160, 96, 90, &options);
    static const int rates[][2] = {{30, 1}, {15, 1}, {24, 1}, {60, 1}, {10, 1}, {24000, 1001}};
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        double fps = (double)rates[i][0] / rates[i][1];
        mel_video_reader *reader = NULL;
        mel_video_read_options read = {.fps_num = rates[i][0], .fps_den = rates[i][1]};
        CHECK_OK(mel_video_reader_open(in("r.mp4"), &read, &reader, err));
        mel_video_info info;
        mel_video_reader_info(reader, &info);
        CHECK_NEAR(info.fps, fps, 1e-9);
        CHECK_NEAR(info.source_fps, 30, 1e-9);
        int got = 0, number;
        for (; (number = next_number(reader)) >= 0; got++)
            CHECK(fabs(number / 30.0 - got / fps) <= 0.5 / fps + 0.51 / 30 || number == 89);
        CHECK(got == lround(3 * fps));
        CHECK(info.frames == got);
        CHECK_OK(mel_video_reader_seek(reader, 2.0, err));
        CHECK_NEAR(next_number(reader), 60, 1);
        mel_video_reader_close(reader);
    }
    mel_video_reader *reader = NULL;
    mel_video_read_options half = {.width = 320};
    CHECK_OK(mel_video_reader_open(in("r.mp4"), &half, &reader, err));
    mel_video_info info;
    mel_video_reader_info(reader, &info);
    CHECK(info.width == 320 && info.height == 192 && info.source_width == 160);
    mel_tensor *t = NULL;
    CHECK_OK(mel_video_reader_next(reader, &t, NULL, err));
    CHECK(mel_tensor_shape(t)[0] == 192 && mel_tensor_shape(t)[1] == 320);
    mel_tensor_unref(t);
    mel_video_reader_close(reader);
    mel_video_read_options bad = {.width = -1};
    CHECK_FAILS(mel_video_reader_open(in("r.mp4"), &bad, &reader, err), MEL_EINVAL, "-1");
}

static void test_temporary_names(void) {
    mel_video_writer *writer = NULL;
    mel_tensor *t = picture(128, 64, 1);
    mel_video_write_options options = {0};
    CHECK_OK(mel_video_writer_open(in("t.mp4"), &options, &writer, err));
    CHECK(files_with(".t.partial-") == 1 && file_size(in("t.mp4")) < 0);
    CHECK_OK(mel_video_writer_write(writer, t, err));
    CHECK(file_size(in("t.mp4")) < 0);
    mel_video_writer_abort(writer);
    CHECK(files_with("partial") == 0 && file_size(in("t.mp4")) < 0);

    // a sequence appears as a whole
    CHECK_OK(mel_video_writer_open(in("q-%d.png"), &options, &writer, err));
    CHECK_OK(mel_video_writer_write(writer, t, err));
    CHECK_OK(mel_video_writer_write(writer, t, err));
    CHECK(file_size(in("q-1.png")) < 0 && files_with("partial") == 3);
    mel_video_writer_abort(writer);
    CHECK(files_with("partial") == 0 && files_with("q-") == 0);

    // a clip at once, and an older file replaced
    mel_tensor *clip = NULL;
    CHECK_OK(mel_tensor_zeros(MEL_F32, 4, (int64_t[]){5, 32, 48, 3}, &clip, err));
    CHECK_OK(mel_image_write(in("t.png"), t, NULL, err));
    CHECK_OK(mel_video_writer_open(in("t.gif"), &options, &writer, err));
    CHECK_OK(mel_video_writer_write(writer, clip, err));
    CHECK(mel_video_writer_frames(writer) == 5);
    CHECK_OK(mel_video_writer_finish(writer, err));
    CHECK(file_size(in("t.gif")) > 0 && files_with("partial") == 0);

    // cancel
    CHECK_OK(mel_video_writer_open(in("c.mp4"), &options, &writer, err));
    mel_cancel();
    CHECK_FAILS(mel_video_writer_write(writer, t, err), MEL_ECANCELED, "");
    mel_cancel_clear();
    mel_video_writer_abort(writer);
    CHECK(files_with("c.mp4") == 0 && files_with("partial") == 0);
    mel_tensor_unref(clip);
    mel_tensor_unref(t);
}

static void put_file(const char *path, const void *bytes, size_t size) {
    FILE *f = fopen(path, "wb");
    fwrite(bytes, 1, size, f);
    fclose(f);
}

// The status of reading a file to its end; message in err.
static mel_status read_all(const char *path, mel_error *err) {
    mel_video_reader *reader = NULL;
    mel_status status = mel_video_reader_open(path, NULL, &reader, err);
    if (status != MEL_OK) return status;
    for (;;) {
        mel_tensor *t = NULL;
        status = mel_video_reader_next(reader, &t, NULL, err);
        mel_tensor_unref(t);
        if (status != MEL_OK || !t) break;
    }
    mel_video_reader_close(reader);
    return status;
}

static void cut(const char *from, const char *to, double part) {
    long size = file_size(from);
    char *bytes = malloc((size_t)size);
    FILE *f = fopen(from, "rb");
    CHECK(fread(bytes, 1, (size_t)size, f) == (size_t)size);
    fclose(f);
    put_file(to, bytes, (size_t)((double)size * part));
    free(bytes);
}

static void test_bad_files(void) {
    CHECK_FAILS(read_all(in("none.mp4"), err), MEL_EIO, "none.mp4: cannot be read: No such file");
    CHECK_FAILS(read_all(folder, err), MEL_EIO, "directory");
    put_file(in("text.mp4"), "this is no film, it is a text that is long enough to look at", 60);
    CHECK_FAILS(read_all(in("text.mp4"), err), MEL_EFORMAT, "text.mp4");
    put_file(in("empty.mp4"), "", 0);
    CHECK_FAILS(read_all(in("empty.mp4"), err), MEL_EFORMAT, "empty.mp4");
    mel_video_write_options options = {0};
    write_clip(in("whole.mp4"), 160, 96, 60, &options);
    cut(in("whole.mp4"), in("half.mp4"), 0.5);
    CHECK_FAILS(read_all(in("half.mp4"), err), MEL_EFORMAT, "cut short");
    cut(in("whole.mp4"), in("head.mp4"), 0.01);
    CHECK_FAILS(read_all(in("head.mp4"), err), MEL_EFORMAT, "head.mp4");
    write_clip(in("whole.webm"), 160, 96, 60, &options);
    cut(in("whole.webm"), in("half.webm"), 0.5);
    CHECK_FAILS(read_all(in("half.webm"), err), MEL_EFORMAT, "cut short");
    write_clip(in("whole.gif"), 160, 96, 30, &options);
    cut(in("whole.gif"), in("half.gif"), 0.5);
    CHECK_FAILS(read_all(in("half.gif"), err), MEL_EFORMAT, "cut short");
    mel_tensor *t = picture(160, 96, 3), *back = NULL;
    CHECK_OK(mel_image_write(in("whole.png"), t, NULL, err));
    cut(in("whole.png"), in("half.png"), 0.5);
    CHECK_FAILS(mel_image_read(in("half.png"), &back, err), MEL_EFORMAT, "half.png");
    CHECK_OK(mel_image_write(in("whole.jpg"), t, NULL, err));
    cut(in("whole.jpg"), in("half.jpg"), 0.5);
    CHECK_FAILS(mel_image_read(in("half.jpg"), &back, err), MEL_EFORMAT, "half.jpg");
    cut(in("whole.jpg"), in("tiny.jpg"), 0.02);
    CHECK_FAILS(mel_image_read(in("tiny.jpg"), &back, err), MEL_EFORMAT, "tiny.jpg");
    CHECK_OK(mel_image_write(in("whole.webp"), t, NULL, err));
    cut(in("whole.webp"), in("half.webp"), 0.5);
    CHECK_FAILS(mel_image_read(in("half.webp"), &back, err), MEL_EFORMAT, "half.webp: is cut short");
    mel_tensor_unref(t);
    write_clip(in("anim.webp"), 160, 96, 12, &options);
    cut(in("anim.webp"), in("half-anim.webp"), 0.5);
    CHECK_FAILS(read_all(in("half-anim.webp"), err), MEL_EFORMAT, "cut short after 0.2");
}

#define OPEN_FAILS(path, status, text, ...)                                                                            \
    do {                                                                                                               \
        mel_video_write_options o_ = {__VA_ARGS__};                                                                    \
        CHECK_FAILS(mel_video_writer_open(path, &o_, &writer, err), status, text);                                     \
    } while (0)

static void test_bad_output(void) {
    mel_video_writer *writer = NULL;
    OPEN_FAILS(in("nowhere/x.mp4"), MEL_EIO, "No such file", 0);
    OPEN_FAILS(in("x.avi"), MEL_EINVAL, "avi", 0);
    OPEN_FAILS(in("x"), MEL_EINVAL, "without extension", 0);
    OPEN_FAILS("/dev/full", MEL_EIO, "not a regular file", .format = "mp4");
    OPEN_FAILS(folder, MEL_EIO, "folder", .format = "mp4");
    OPEN_FAILS(in("x.mp4"), MEL_EINVAL, "vp9", .codec = "vp9");
    OPEN_FAILS(in("x.mp4"), MEL_EINVAL, "format 'avi'", .format = "avi");
    OPEN_FAILS(in("x.mp4"), MEL_EINVAL, "crf is 52", .crf_set = true, .crf = 52);
    OPEN_FAILS(in("x.mp4"), MEL_EINVAL, "quick", .preset = "quick");
    OPEN_FAILS(in("x.webm"), MEL_EINVAL, "0 to 8", .preset = "9");
    OPEN_FAILS(in("x.mp4"), MEL_EINVAL, "quality is -1", .quality = -1);
    OPEN_FAILS(in("x.jpg"), MEL_EINVAL, "quality is 101", .quality = 101);
    OPEN_FAILS(in("x.mp4"), MEL_EINVAL, "fps", .fps_num = -1, .fps_den = 1);
    OPEN_FAILS(in("x.gif"), MEL_EINVAL, "50", .fps_num = 60, .fps_den = 1);
    OPEN_FAILS(in("x.png"), MEL_EINVAL, "crf", .crf_set = true, .crf = 1);
    const char *bad[] = {"a key", "v"};
    OPEN_FAILS(in("x.mp4"), MEL_EINVAL, "a key", .metadata = bad, .metadata_count = 1);

    mel_tensor *odd = picture(35, 20, 0), *even = picture(36, 20, 0), *flat = NULL, *wrong = NULL;
    mel_video_write_options options = {0};
    CHECK_OK(mel_video_writer_open(in("x.mp4"), &options, &writer, err));
    CHECK_FAILS(mel_video_writer_write(writer, odd, err), MEL_EINVAL, "36x20");
    mel_video_writer_abort(writer);
    CHECK_OK(mel_video_writer_open(in("x.mp4"), &options, &writer, err));
    CHECK_OK(mel_video_writer_write(writer, even, err));
    CHECK_FAILS(mel_video_writer_write(writer, odd, err), MEL_EINVAL, "35x20, wanted 36x20");
    CHECK_OK(mel_tensor_zeros(MEL_U8, 2, (int64_t[]){20, 36}, &flat, err));
    CHECK_FAILS(mel_video_writer_write(writer, flat, err), MEL_EINVAL, "[20, 36]");
    CHECK_OK(mel_tensor_zeros(MEL_S32, 3, (int64_t[]){20, 36, 3}, &wrong, err));
    CHECK_FAILS(mel_video_writer_write(writer, wrong, err), MEL_EINVAL, "s32");
    mel_video_writer_abort(writer);
    CHECK_OK(mel_video_writer_open(in("x.mp4"), &options, &writer, err));
    CHECK_FAILS(mel_video_writer_finish(writer, err), MEL_EINVAL, "no frames");
    CHECK_OK(mel_video_writer_open(in("x.png"), &options, &writer, err));
    CHECK_OK(mel_video_writer_write(writer, even, err));
    CHECK_FAILS(mel_video_writer_write(writer, even, err), MEL_EINVAL, "x-%04d.png");
    mel_video_writer_abort(writer);
    CHECK(files_with("x.") == 0 && files_with("partial") == 0);
    options.pad = true;
    CHECK_OK(mel_video_writer_open(in("pad.mp4"), &options, &writer, err));
    CHECK_OK(mel_video_writer_write(writer, odd, err));
    CHECK_OK(mel_video_writer_finish(writer, err));
    mel_tensor *back = NULL;
    CHECK_OK(mel_image_read(in("pad.mp4"), &back, err));
    CHECK(mel_tensor_shape(back)[1] == 36);
    mel_tensor_unref(back);
    mel_tensor_unref(odd);
    mel_tensor_unref(even);
    mel_tensor_unref(flat);
    mel_tensor_unref(wrong);
}

// A limit on the size of files stands for a full disk.
static void test_no_space(void) {
    static const char *const names[] = {"n.mp4", "n.webm", "n.gif", "n.webp", "n-%d.png", "n-%d.jpg"};
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    signal(SIGXFSZ, SIG_IGN);
    for (int n = 0; n < 6; n++) {
        mel_video_writer *writer = NULL;
        mel_error e = {0};
        small.rlim_cur = n < 4 ? 3000 : 300; // less than one image
        setrlimit(RLIMIT_FSIZE, &small);
        mel_video_write_options options = {.crf_set = n < 2, .crf = 0};
        mel_status status = mel_video_writer_open(in(names[n]), &options, &writer, &e);
        for (int i = 0; i < 40 && status == MEL_OK; i++) {
            mel_tensor *t = picture(160, 96, i);
            status = mel_video_writer_write(writer, t, &e);
            mel_tensor_unref(t);
        }
        if (status == MEL_OK)
            status = mel_video_writer_finish(writer, &e);
        else
            mel_video_writer_abort(writer);
        setrlimit(RLIMIT_FSIZE, &old);
        CHECK(status == MEL_EIO);
        CHECK(strstr(e.message, "File too large") && strstr(e.message, "/n"));
        if (status != MEL_EIO || !strstr(e.message, "File too large"))
            fprintf(stderr, "  %s: status %d, '%s'\n", names[n], status, e.message);
        CHECK(files_with("partial") == 0 && files_with("n.") == 0 && files_with("n-") == 0);
    }
}

// Every allocation of ours fails once: an error, no leak, no file.
static void test_allocations(void) {
    static const char *const names[] = {"m.mp4", "m.gif", "m.webp", "m-%d.png", "m.jpg"};
    mel_tensor *t = NULL;
    CHECK_OK(mel_tensor_zeros(MEL_BF16, 3, (int64_t[]){32, 48, 3}, &t, err));
    int64_t live = mel_mem_live();
    for (int n = 0; n < 5; n++) {
        const char *shown = n == 3 ? "m-1.png" : names[n];
        for (int64_t nth = 1;; nth++) {
            mel_error e = {0};
            mel_tensor *back = NULL;
            mel_video_write_options options = {.metadata = tags, .metadata_count = 4};
            mel_mem_fail_nth(nth);
            mel_status written = mel_image_write(in(names[n]), t, &options, &e);
            mel_status status = written == MEL_OK ? mel_image_read(in(shown), &back, &e) : written;
            mel_mem_fail_nth(0);
            CHECK(status == MEL_OK || (status == MEL_ENOMEM && e.message[0]));
            CHECK((file_size(in(shown)) > 0) == (written == MEL_OK) && files_with("partial") == 0);
            mel_tensor_unref(back);
            CHECK(mel_mem_live() == live);
            unlink(in(shown));
            if (status == MEL_OK) break;
            if (nth > 200) {
                CHECK(nth <= 200);
                break;
            }
        }
    }
    mel_tensor_unref(t);
}

static long resident_kb(void) {
    long pages = 0, total = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%ld %ld", &total, &pages) != 2) pages = 0;
    if (f) fclose(f);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

// What the process may grow by; a sanitizer keeps freed memory back.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum {
    ROOM_KB = 1 << 20
};
#else
enum {
    ROOM_KB = 8192
};
#endif

// 3,000 small frames: after the encoder has its look-ahead, nothing grows.
static void test_memory_is_flat(void) {
    static const char *const names[] = {"flat.mp4", "flat.gif", "flat.webp"};
    for (int n = 0; n < 3; n++) {
        mel_video_writer *writer = NULL;
        mel_video_write_options options = {.preset = n == 0 ? "ultrafast" : NULL};
        CHECK_OK(mel_video_writer_open(in(names[n]), &options, &writer, err));
        long before = 0;
        int64_t live = 0;
        for (int i = 0; i < 3000; i++) {
            mel_tensor *t = picture(128, 64, i);
            CHECK_OK(mel_video_writer_write(writer, t, err));
            mel_tensor_unref(t);
            if (i == 300) before = resident_kb(), live = mel_mem_live();
        }
        long grown = resident_kb() - before;
        CHECK(mel_mem_live() == live);
        CHECK_OK(mel_video_writer_finish(writer, err));
        long finished = resident_kb() - before;
        printf("     %s: %ld KiB more after 3000 frames, %ld after finish\n", names[n], grown, finished);
        CHECK(grown < ROOM_KB && finished < 2 * ROOM_KB);
    }
    mel_video_reader *reader = NULL;
    CHECK_OK(mel_video_reader_open(in("flat.mp4"), NULL, &reader, err));
    long before = 0;
    int count = 0;
    for (int number; (number = next_number(reader)) >= 0; count++) {
        CHECK(number == count);
        if (count == 300) before = resident_kb();
    }
    CHECK(count == 3000);
    CHECK(resident_kb() - before < ROOM_KB);
    mel_video_reader_close(reader);
}

static void test_pixels(void) {
    float values[] = {-1, 0, 0.25f, 0.5f, 1, 2, NAN, 1.5f / 255, 0.49f / 255};
    static const uint8_t want[] = {0, 0, 64, 128, 255, 255, 0, 2, 0};
    mel_tensor *x = NULL, *u8 = NULL, *f32 = NULL;
    CHECK_OK(mel_tensor_wrap(MEL_F32, 1, (int64_t[]){9}, values, false, NULL, NULL, &x, err));
    CHECK_OK(mel_pixels_to_u8(x, &u8, err));
    CHECK(memcmp(mel_tensor_data(u8), want, 9) == 0);
    CHECK_OK(mel_pixels_to_f32(u8, &f32, err));
    CHECK_NEAR(((float *)mel_tensor_data(f32))[3], 128 / 255.0, 1e-7);
    mel_tensor_unref(x);
    mel_tensor_unref(u8);
    mel_tensor_unref(f32);
}

int main(void) {
    strcpy(folder, "/tmp/melies-media-XXXXXX");
    if (!mkdtemp(folder)) return 1;
    RUN(test_pixels);
    RUN(test_round_trips);
    RUN(test_images);
    RUN(test_colours);
    RUN(test_seek);
    RUN(test_rates_and_sizes);
    RUN(test_temporary_names);
    RUN(test_bad_files);
    RUN(test_bad_output);
    RUN(test_no_space);
    RUN(test_allocations);
    RUN(test_memory_is_flat);
    CHECK(mel_mem_live() == 0);
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (!getenv("KEEP") && system(command) != 0) return 1;
    return CHECK_DONE();
}
