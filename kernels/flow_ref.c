// The naive twin of optical flow: exhaustive block match, then Lucas-Kanade. For small images.
#include "flow.h"

#include <math.h>

enum {
    REACH = 4 // a window is 9 x 9
};

static float at(const float *p, int64_t w, int64_t h, int64_t x, int64_t y) {
    x = x < 0 ? 0 : x >= w ? w - 1 : x;
    y = y < 0 ? 0 : y >= h ? h - 1 : y;
    return p[y * w + x];
}

static float between(const float *p, int64_t w, int64_t h, double x, double y) {
    double fx = floor(x), fy = floor(y), ax = x - fx, ay = y - fy;
    int64_t ix = (int64_t)fx, iy = (int64_t)fy;
    return (float)((1 - ay) * ((1 - ax) * at(p, w, h, ix, iy) + ax * at(p, w, h, ix + 1, iy)) +
                   ay * ((1 - ax) * at(p, w, h, ix, iy + 1) + ax * at(p, w, h, ix + 1, iy + 1)));
}

static double block_difference(
    const float *a, const float *b, int64_t w, int64_t h, int64_t x, int64_t y, int64_t dx, int64_t dy) {
    double sum = 0, squares = 0;
    int n = 0;
    for (int64_t j = -REACH; j <= REACH; j++)
        for (int64_t i = -REACH; i <= REACH; i++, n++) {
            double e = at(b, w, h, x + dx + i, y + dy + j) - at(a, w, h, x + i, y + j);
            sum += e;
            squares += e * e;
        }
    return squares - sum * sum / n;
}

void flow_reference(const float *a, const float *b, int64_t w, int64_t h, int radius, float *u, float *v) {
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            double least = INFINITY, du = 0, dv = 0;
            for (int64_t dy = -radius; dy <= radius; dy++)
                for (int64_t dx = -radius; dx <= radius; dx++) {
                    double d = block_difference(a, b, w, h, x, y, dx, dy);
                    if (d < least) least = d, du = (double)dx, dv = (double)dy;
                }
            for (int n = 0; n < 10; n++) {
                double xx = 1, xy = 0, yy = 1, bx = 0, by = 0;
                for (int64_t j = -REACH; j <= REACH; j++)
                    for (int64_t i = -REACH; i <= REACH; i++) {
                        int64_t px = x + i, py = y + j;
                        double gx = 0.5 * (at(a, w, h, px + 1, py) - at(a, w, h, px - 1, py));
                        double gy = 0.5 * (at(a, w, h, px, py + 1) - at(a, w, h, px, py - 1));
                        double e = between(b, w, h, (double)px + du, (double)py + dv) - at(a, w, h, px, py);
                        xx += gx * gx;
                        xy += gx * gy;
                        yy += gy * gy;
                        bx += gx * e;
                        by += gy * e;
                    }
                double det = xx * yy - xy * xy;
                du -= (yy * bx - xy * by) / det;
                dv -= (xx * by - xy * bx) / det;
            }
            u[y * w + x] = (float)du;
            v[y * w + x] = (float)dv;
        }
}
