//! Layout `i2s`: two bits per weight, rows interleaved.
//!
//! A tile is 32 rows x 16 columns in 128 bytes: 32 little-endian dwords, dword `r` for row `r`. In byte `j` of a dword the bit
//! pair `p` (bits `2p+1..2p`) holds the code `w + 1` of column `4p + j`. The tiles of 32 rows follow each other along `k`.
//!
//! So one vector load brings the same 16 columns of 8 (or 16) rows, a shift and an AND leave the codes of 4 neighbouring
//! columns in every dword, and these meet one broadcast dword of activations: sums stay in lanes, one lane per row.

use std::ops::Range;

use crate::bytes::AlignedBytes;
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// Rows of a tile. `n` is padded to a multiple of it.
pub const TILE_ROWS: usize = 32;
/// Columns of a tile. `k` is padded to a multiple of it.
pub const TILE_K: usize = 16;
/// Bytes of a tile.
pub const TILE_BYTES: usize = TILE_ROWS * TILE_K / 4;

/// One tile as stored.
pub type Tile = [u8; TILE_BYTES];

/// Four times the code of a zero trit, in every bit pair.
const ZEROS: u8 = 0b01_01_01_01;

/// Lays out `w`; padded rows and columns hold zero trits.
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    let (n, k) = (w.n(), w.k());
    let tiles_per_row = k.div_ceil(TILE_K);
    let mut data = AlignedBytes::zeroed(n.div_ceil(TILE_ROWS) * tiles_per_row * TILE_BYTES);
    data.fill(ZEROS);
    for row in 0..n {
        let (row_tile, r) = (row / TILE_ROWS, row % TILE_ROWS);
        for (tile, trits) in w.row(row).chunks(TILE_K).enumerate() {
            let at = (row_tile * tiles_per_row + tile) * TILE_BYTES + 4 * r;
            let mut codes = u32::from_le_bytes([ZEROS; 4]);
            for (column, &trit) in trits.iter().enumerate() {
                // Adding the trit to the code of zero (1) gives its code without touching the neighbours.
                codes = codes.wrapping_add_signed(i32::from(trit) << shift(column));
            }
            data[at..at + 4].copy_from_slice(&codes.to_le_bytes());
        }
    }
    PackedMatrix { n, k, data }
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    let mut trits = Vec::with_capacity(packed.n * packed.k);
    for row in 0..packed.n {
        let tiles = row_tile(packed, row / TILE_ROWS);
        trits.extend((0..packed.k).map(|k| trit(dword(&tiles[k / TILE_K], row % TILE_ROWS), k % TILE_K)));
    }
    trits
}

/// The tiles of every 32 rows of `rows`, in order. `rows` starts and ends on a multiple of [`TILE_ROWS`].
pub fn row_tiles(packed: &PackedMatrix, rows: Range<usize>) -> impl Iterator<Item = &[Tile]> {
    assert!(rows.start.is_multiple_of(TILE_ROWS) && rows.end.is_multiple_of(TILE_ROWS), "{rows:?} cuts a tile");
    (rows.start / TILE_ROWS..rows.end / TILE_ROWS).map(|index| row_tile(packed, index))
}

/// The tiles of rows `32 index .. 32 index + 32`, along `k`.
pub fn row_tile(packed: &PackedMatrix, index: usize) -> &[Tile] {
    let tiles_per_row = packed.k.div_ceil(TILE_K);
    &packed.data.as_chunks().0[index * tiles_per_row..][..tiles_per_row]
}

/// The 16 codes of row `row` of a tile.
pub fn dword(tile: &Tile, row: usize) -> u32 {
    let at = 4 * row;
    u32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]])
}

/// The trit in column `column` of a dword.
pub fn trit(dword: u32, column: usize) -> i8 {
    (dword >> shift(column) & 3) as i8 - 1
}

/// Where in its dword a column lies: byte `column % 4`, bit pair `column / 4`.
const fn shift(column: usize) -> u32 {
    (8 * (column % 4) + 2 * (column / 4)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(n: usize, k: usize, trit: impl Fn(usize, usize) -> i8) -> TernaryMatrix {
        TernaryMatrix::new(n, k, (0..n * k).map(|i| trit(i / k, i % k)).collect(), 1.0).unwrap()
    }

    #[test]
    fn bytes_lie_as_documented() {
        // Row 0: columns 0, 4, 8, 12 share byte 0, lowest bits first: codes 2, 0, 1, 2 give 0b10_01_00_10.
        let w = matrix(1, 16, |_, k| [1, 0, 0, 0, -1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][k]);
        let packed = pack(&w);
        assert_eq!(packed.data.len(), TILE_BYTES);
        assert_eq!(packed.data[..4], [0b10_01_00_10, 0b01_01_01_01, 0b01_01_01_01, 0b01_01_01_01]);
        assert!(packed.data[4..].iter().all(|&byte| byte == 0b01_01_01_01), "padding rows are zero trits");

        // Row 33 is row 1 of the second row tile; column 17 is column 1 of its second tile: byte 1 of dword 1 of tile 3.
        let packed = pack(&matrix(34, 18, |row, k| if (row, k) == (33, 17) { -1 } else { 0 }));
        assert_eq!(packed.data.len(), 4 * TILE_BYTES);
        let changed: Vec<usize> = (0..packed.data.len()).filter(|&i| packed.data[i] != ZEROS).collect();
        assert_eq!(changed, [3 * TILE_BYTES + 4 + 1]);
        assert_eq!(packed.data[changed[0]], 0b01_01_01_00);
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 15), (31, 16), (32, 17), (33, 33), (65, 130)] {
            let w = matrix(n, k, |row, k| ((row * 7 + k * 5) % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }
}
