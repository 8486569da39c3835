//! Layout `bitplane`: one bit per weight and sign, 64 rows interleaved.
//!
//! Two planes of bits: one says where the weights are +1, one where they are -1. A step is 64 rows x 4 columns in 64
//! bytes, byte `r` for row `r`: bit `i` is column `i` in the plane of +1, bit `4 + i` in the plane of -1. The steps of
//! 64 rows follow each other along `k`.
//!
//! A nibble of either plane is an index into the same table, the 16 sums of some of 4 activations.

use crate::bytes::AlignedBytes;
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// Rows of a step. `n` is padded to a multiple of it.
pub const TILE_ROWS: usize = 64;
/// Weights that share a table.
pub const GROUP: usize = 4;
/// Columns of a step. `k` is padded to a multiple of it.
pub const TILE_K: usize = GROUP;

/// The bits of every nibble.
pub const CODES: [[i8; TILE_K]; 16] = {
    let (mut codes, mut i) = ([[0; TILE_K]; 16], 0);
    while i < 16 * TILE_K {
        codes[i / TILE_K][i % TILE_K] = ((i / TILE_K) >> (i % TILE_K) & 1) as i8;
        i += 1;
    }
    codes
};

/// One step as stored.
pub type Step = [u8; TILE_ROWS];

/// Lays out `w`; padded rows and columns hold zero trits (no bit in either plane).
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    let (n, k) = (w.n(), w.k());
    let steps_per_row = k.div_ceil(TILE_K);
    let mut data = AlignedBytes::zeroed(n.div_ceil(TILE_ROWS) * steps_per_row * TILE_ROWS);
    for row in 0..n {
        let (tile, r) = (row / TILE_ROWS, row % TILE_ROWS);
        for (column, &trit) in w.row(row).iter().enumerate() {
            let byte = &mut data[(tile * steps_per_row + column / TILE_K) * TILE_ROWS + r];
            *byte |= (u8::from(trit == 1) | u8::from(trit == -1) << 4) << (column % TILE_K);
        }
    }
    PackedMatrix { n, k, data: data.into() }
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    let trit = |row: usize, column: usize| {
        let byte = tile(packed, row / TILE_ROWS)[column / TILE_K][row % TILE_ROWS] >> (column % TILE_K);
        (byte & 1) as i8 - (byte >> 4 & 1) as i8
    };
    (0..packed.n * packed.k).map(|i| trit(i / packed.k, i % packed.k)).collect()
}

/// The steps of rows `64 index .. 64 index + 64`, along `k`.
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
        let packed = pack(&matrix(1, 4, |_, column| [1, -1, 0, 1][column]));
        assert_eq!(packed.data.len(), 64);
        assert_eq!(packed.data[0], 0b0010_1001);
        assert!(packed.data[1..].iter().all(|&byte| byte == 0), "padding rows are zero trits");

        // Row 65 is row 1 of the second tile; column 5 is column 1 of its second step.
        let packed = pack(&matrix(66, 6, |row, column| if (row, column) == (65, 5) { -1 } else { 0 }));
        assert_eq!(packed.data.len(), 4 * 64);
        let changed: Vec<(usize, u8)> =
            packed.data.iter().copied().enumerate().filter(|&(_, byte)| byte != 0).collect();
        assert_eq!(changed, [(3 * 64 + 1, 0b0010_0000)]);
        assert_eq!(CODES[0b1010], [0, 1, 0, 1]);
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 3), (63, 4), (64, 5), (65, 6), (129, 131)] {
            let w = matrix(n, k, |row, column| ((row * 7 + column * 5 + row * column) % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }
}
