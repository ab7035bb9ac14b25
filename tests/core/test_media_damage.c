// Damaged bytes: whatever stands in a file, reading it ends with MEL_OK or a message. Contact sheets and turned images.
#include "media_help.h"

#include <melies/media.h>
#include <unistd.h>

static mel_status read_all(const char *path, mel_error *err) {
    mel_video_reader *reader = NULL;
    mel_status status = mel_video_reader_open(path, NULL, &reader, err);
    if (status != MEL_OK) return status;
    for (int i = 0; i < 100; i++) {
        mel_tensor *t = NULL;
        status = mel_video_reader_next(reader, &t, NULL, err);
        mel_tensor_unref(t);
        if (status != MEL_OK || !t) break;
    }
    mel_video_reader_close(reader);
    return status;
}

static const char *const tags[] = {"melies_recipe", "text_to_video", "note", "caf\xc3\xa9 <&>"};

static void test_flipped_bytes(void) {
    static const char *const names[] = {"a.mp4", "a.webm", "a.gif", "a.webp", "one.webp", "a.png", "a.jpg"};
    static uint8_t whole[1 << 20], copy[1 << 20];
    int64_t live = mel_mem_live();
    for (int n = 0; n < 7; n++) {
        mel_tensor *clip = NULL;
        CHECK_OK(mel_tensor_zeros(MEL_U8, 4, (int64_t[]){n < 4 ? 6 : 1, 32, 48, 3}, &clip, err));
        uint8_t *p = mel_tensor_data(clip);
        for (int64_t i = 0; i < mel_tensor_numel(clip); i++)
            p[i] = (uint8_t)(i / 7 + random_number() % 16);
        mel_video_write_options options = {.metadata = tags, .metadata_count = 2};
        mel_video_writer *writer = NULL;
        CHECK_OK(mel_video_writer_open(in(names[n]), &options, &writer, err));
        CHECK_OK(mel_video_writer_write(writer, clip, err));
        CHECK_OK(mel_video_writer_finish(writer, err));
        mel_tensor_unref(clip);
        size_t size = load(in(names[n]), whole, sizeof whole);
        CHECK(size > 100 && size < sizeof whole);
        int failed = 0;
        for (int round = 0; round < 60; round++) {
            memcpy(copy, whole, size);
            // half of the rounds damage the headers only
            size_t range = round % 2 ? size : size < 400 ? size : 400;
            for (int k = 0; k < 1 + round % 8; k++)
                copy[random_number() % range] = (uint8_t)random_number();
            size_t kept = round % 5 == 0 ? random_number() % size : size;
            store(in("damaged"), copy, kept);
            mel_error e = {0};
            mel_status status = read_all(in("damaged"), &e);
            CHECK(status == MEL_OK || e.message[0]);
            mel_tensor *image = NULL;
            mel_error f = {0};
            mel_status read = mel_image_read(in("damaged"), &image, &f);
            CHECK(read == MEL_OK || f.message[0]);
            mel_tensor_unref(image);
            failed += status != MEL_OK;
            CHECK(mel_mem_live() == live);
        }
        printf("     %s: %d of 60 refused\n", names[n], failed);
    }
}

// A JPEG whose Exif says that the camera was turned.
static void test_orientation(void) {
    static const uint8_t exif[] = {0xff, 0xe1, 0, 34, 'E', 'x', 'i', 'f', 0, 0, 'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 0x01,
        0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0};
    static uint8_t bytes[1 << 16], with[1 << 16];
    mel_tensor *t = NULL, *back = NULL;
    CHECK_OK(mel_tensor_zeros(MEL_U8, 3, (int64_t[]){32, 64, 3}, &t, err));
    memset(mel_tensor_data(t), 255, 16 * 64 * 3); // the upper half is white
    CHECK_OK(mel_image_write(in("turn.jpg"), t, NULL, err));
    size_t size = load(in("turn.jpg"), bytes, sizeof bytes);
    memcpy(with, bytes, 2);
    memcpy(with + 2, exif, sizeof exif);
    memcpy(with + 2 + sizeof exif, bytes + 2, size - 2);
    store(in("turned.jpg"), with, size + sizeof exif);
    CHECK_OK(mel_image_read(in("turned.jpg"), &back, err));
    CHECK(back && mel_tensor_shape(back)[0] == 64 && mel_tensor_shape(back)[1] == 32);
    const uint8_t *p = mel_tensor_data(back); // clockwise by 90: the right half is white
    CHECK(p[(32 * 32 + 4) * 3] < 10 && p[(32 * 32 + 28) * 3] > 245);
    mel_tensor_unref(t);
    mel_tensor_unref(back);
}

static void test_sheet_allocations(void) {
    mel_tensor *a = NULL, *b = NULL;
    CHECK_OK(mel_tensor_zeros(MEL_F32, 3, (int64_t[]){20, 30, 3}, &a, err));
    CHECK_OK(mel_tensor_zeros(MEL_U8, 3, (int64_t[]){10, 50, 3}, &b, err));
    const mel_tensor *frames[] = {a, b, a, b, a};
    const char *labels[] = {"one", NULL, "three is far too long for one cell", "four", "caf\xc3\xa9"};
    mel_contact_sheet_options options = {.columns = 3, .scale = 1.5, .labels = labels};
    int64_t live = mel_mem_live();
    for (int64_t nth = 1; nth < 100; nth++) {
        mel_tensor *sheet = NULL;
        mel_error e = {0};
        mel_mem_fail_nth(nth);
        mel_status status = mel_contact_sheet(5, frames, &options, &sheet, &e);
        mel_mem_fail_nth(0);
        CHECK(status == MEL_OK || (status == MEL_ENOMEM && e.message[0] && !sheet));
        if (status == MEL_OK) {
            CHECK(
                mel_tensor_shape(sheet)[1] == 8 + 3 * (75 + 8) && mel_tensor_shape(sheet)[0] == 8 + 2 * (30 + 11 + 8));
            mel_tensor_unref(sheet);
            CHECK(mel_mem_live() == live);
            break;
        }
        CHECK(mel_mem_live() == live);
    }
    mel_tensor *sheet = NULL;
    options.scale = -1;
    CHECK_FAILS(mel_contact_sheet(5, frames, &options, &sheet, err), MEL_EINVAL, "scale is -1");
    CHECK_FAILS(mel_contact_sheet(0, frames, NULL, &sheet, err), MEL_EINVAL, "0 frames");
    options.scale = 64;
    options.columns = 1000;
    frames[0] = NULL;
    CHECK_FAILS(mel_contact_sheet(5, frames, &options, &sheet, err), MEL_EINVAL, "frame 1 is missing");
    mel_tensor_unref(a);
    mel_tensor_unref(b);
}

int main(void) {
    strcpy(folder, "/tmp/melies-damage-XXXXXX");
    if (!mkdtemp(folder)) return 1;
    RUN(test_flipped_bytes);
    RUN(test_orientation);
    RUN(test_sheet_allocations);
    CHECK(mel_mem_live() == 0);
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0) return 1;
    return CHECK_DONE();
}
