//! Layout `tl1`: a nibble per two weights, 32 rows interleaved.
//!
//! A step is 32 rows x 4 columns in 32 bytes, byte `r` for row `r`: the low nibble is the code of the first two
//! columns, the high nibble that of the other two. A code is the pair's number in balanced ternary plus 4, `4 + w0 + 3
//! w1`: 9 of 16. The steps of 32 rows follow each other along `k`.
//!
//! So one vector load brings the same columns of many rows, and a byte shuffle looks all of them up in one table of 16
//! entries.

use crate::bytes::AlignedBytes;
use crate::kernel::PackedMatrix;
use crate::layout::balanced;
use crate::trit::TernaryMatrix;

/// Rows of a step. `n` is padded to a multiple of it.
pub const TILE_ROWS: usize = 32;
/// Columns of a step. `k` is padded to a multiple of it.
pub const TILE_K: usize = 4;
/// Weights that share a code.
pub const GROUP: usize = 2;

/// The trits of every code; the last 7 stand for nothing.
pub const CODES: [[i8; GROUP]; 16] = balanced::codes(-OFFSET, 9);

/// One step as stored.
pub type Step = [u8; TILE_ROWS];

/// The code of two zero trits.
const OFFSET: i32 = 4;
/// It, twice.
const ZEROS: u8 = 0x44;

/// Lays out `w`; padded rows and columns hold zero trits.
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    let (n, k) = (w.n(), w.k());
    let steps_per_row = k.div_ceil(TILE_K);
    let mut data = AlignedBytes::zeroed(n.div_ceil(TILE_ROWS) * steps_per_row * TILE_ROWS);
    data.fill(ZEROS);
    for row in 0..n {
        let steps: &mut [Step] = data.as_chunks_mut().0;
        let steps = &mut steps[row / TILE_ROWS * steps_per_row..][..steps_per_row];
        let (whole, rest) = w.row(row).as_chunks();
        let mut last = [0; TILE_K];
        last[..rest.len()].copy_from_slice(rest);
        for (trits, step) in whole.iter().chain([&last]).zip(steps) {
            step[row % TILE_ROWS] = codes(*trits);
        }
    }
    PackedMatrix { n, k, data: data.into() }
}

/// The byte of four trits: `Σ (trit + 1) · {1, 3, 16, 48}`, the highest byte of a product in which no other sum reaches 256.
fn codes(trits: [i8; TILE_K]) -> u8 {
    let trits = u32::from_le_bytes(trits.map(i8::cast_unsigned));
    // Bytes plus one, without carries from -1 to the next.
    let plus_one = ((trits & 0x7F7F_7F7F) + 0x0101_0101) ^ (trits & 0x8080_8080);
    (plus_one.wrapping_mul(u32::from_le_bytes([48, 16, 3, 1])) >> 24) as u8
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    let trit = |row: usize, column: usize| {
        let byte = tile(packed, row / TILE_ROWS)[column / TILE_K][row % TILE_ROWS];
        CODES[usize::from(byte >> (4 * (column % TILE_K / GROUP)) & 15)][column % GROUP]
    };
    (0..packed.n * packed.k).map(|i| trit(i / packed.k, i % packed.k)).collect()
}

/// The steps of rows `32 index .. 32 index + 32`, along `k`.
pub fn tile(packed: &PackedMatrix, index: usize) -> &[Step] {
    let steps_per_row = packed.k.div_ceil(TILE_K);
    &packed.data.as_chunks().0[index * steps_per_row..][..steps_per_row]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::matrix;

    #[test]
    fn bytes_lie_as_documented() {
        // 4 + 1 - 3 = 2, and 4 + 0 + 3 = 7.
        let packed = pack(&matrix(1, 4, |_, column| [1, -1, 0, 1][column]));
        assert_eq!(packed.data.len(), 32);
        assert_eq!(packed.data[0], 0x72);
        assert!(packed.data[1..].iter().all(|&byte| byte == ZEROS), "padding rows are zero trits");

        // Row 33 is row 1 of the second tile; column 5 is the second of the low nibble of its second step.
        let packed = pack(&matrix(34, 5 + 1, |row, column| if (row, column) == (33, 5) { -1 } else { 0 }));
        assert_eq!(packed.data.len(), 4 * 32);
        let changed: Vec<usize> = (0..packed.data.len()).filter(|&i| packed.data[i] != ZEROS).collect();
        assert_eq!(changed, [3 * 32 + 1]);
        assert_eq!(packed.data[changed[0]], 0x41);
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 3), (31, 4), (32, 5), (33, 6), (65, 131)] {
            let w = matrix(n, k, |row, column| ((row * 7 + column * 5 + row * column) % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }
}
