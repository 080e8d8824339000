/* AMX's instructions in plain C, after the operations in Intel's Architecture Instruction Set Extensions
 * reference: for testing the loops around them on any CPU (QATCORE_EMULATE=1, see setup.py).
 * Whatever the hardware would refuse ends the process. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static __thread struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} emulated_config;
static __thread uint8_t emulated_tiles[8][16][64];

static void emulated_require(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "emulated AMX: %s\n", what);
        abort();
    }
}

static void _tile_loadconfig(const void *memory)
{
    memcpy(&emulated_config, memory, 64);
    emulated_require(emulated_config.palette == 1 && emulated_config.start_row == 0, "no such palette or start row");
    for (int i = 0; i < 14; i++) emulated_require(emulated_config.reserved[i] == 0, "reserved bytes are not zero");
    for (int i = 0; i < 16; i++) {
        emulated_require(i < 8 || (!emulated_config.row_bytes[i] && !emulated_config.rows[i]), "there are 8 tiles");
        emulated_require(emulated_config.row_bytes[i] <= 64 && emulated_config.rows[i] <= 16, "a tile is too large");
    }
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}

static void _tile_release(void)
{
    memset(&emulated_config, 0, sizeof emulated_config);
}

static void emulated_use(int tile)
{
    emulated_require(emulated_config.palette == 1, "tiles are not configured");
    emulated_require(emulated_config.rows[tile] && emulated_config.row_bytes[tile], "the tile is not configured");
}

static void _tile_zero(int tile)
{
    emulated_use(tile);
    memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile]);
}

static void _tile_loadd(int tile, const void *memory, long stride)
{
    emulated_use(tile);
    memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile]);
    for (int i = 0; i < emulated_config.rows[tile]; i++)
        memcpy(emulated_tiles[tile][i], (const char *)memory + i * stride, emulated_config.row_bytes[tile]);
}

static void _tile_stored(int tile, void *memory, long stride)
{
    emulated_use(tile);
    for (int i = 0; i < emulated_config.rows[tile]; i++)
        memcpy((char *)memory + i * stride, emulated_tiles[tile][i], emulated_config.row_bytes[tile]);
}

/* TDPBSUD: signed bytes of a times unsigned bytes of b, added to 32-bit sums that wrap. */
static void _tile_dpbsud(int sums, int a, int b)
{
    emulated_use(sums);
    emulated_use(a);
    emulated_use(b);
    emulated_require(emulated_config.rows[sums] == emulated_config.rows[a], "rows differ");
    emulated_require(emulated_config.row_bytes[sums] == emulated_config.row_bytes[b], "columns differ");
    emulated_require(emulated_config.row_bytes[a] == 4 * emulated_config.rows[b], "inner dimensions differ");
    for (int m = 0; m < emulated_config.rows[sums]; m++)
        for (int k = 0; k < emulated_config.row_bytes[a] / 4; k++)
            for (int n = 0; n < emulated_config.row_bytes[sums] / 4; n++) {
                uint32_t total;
                memcpy(&total, &emulated_tiles[sums][m][4 * n], 4);
                for (int t = 0; t < 4; t++)
                    total += (uint32_t)((int8_t)emulated_tiles[a][m][4 * k + t] * emulated_tiles[b][k][4 * n + t]);
                memcpy(&emulated_tiles[sums][m][4 * n], &total, 4);
            }
}
