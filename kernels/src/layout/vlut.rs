//! Layout `vlut`: a byte per four weights, all rows beside each other.
//!
//! The byte is the four trits' number in balanced ternary plus 40, `40 + w0 + 3 w1 + 9 w2 + 27 w3`: 81 of 256. A slice is 16
//! columns of all rows, 4 bytes a row, group after group; slices follow each other along `k`.
//!
//! So four tables of 81 entries serve all rows of a slice, whose bytes stream by once.

use std::ops::Range;

use crate::bytes::AlignedBytes;
use crate::kernel::PackedMatrix;
use crate::layout::balanced;
use crate::trit::TernaryMatrix;

/// `n` is padded to a multiple of this many rows.
pub const TILE_ROWS: usize = 8;
/// Columns of a slice. `k` is padded to a multiple of it.
pub const TILE_K: usize = GROUP * GROUPS;
/// Weights that share a byte.
pub const GROUP: usize = 4;
/// Groups of a slice.
pub const GROUPS: usize = 4;
/// Codes that stand for something.
pub const N_CODES: usize = 81;

/// A row's part of a slice.
pub type Quad = [u8; GROUPS];

/// The code of four zero trits.
const OFFSET: i32 = 40;

/// Lays out `w`; padded rows and columns hold zero trits.
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    let (n, k) = (w.n(), w.k());
    let n_rows = n.next_multiple_of(TILE_ROWS);
    let mut data = AlignedBytes::zeroed(n_rows * k.div_ceil(TILE_K) * GROUPS);
    data.fill(OFFSET as u8);
    for row in 0..n {
        for (group, trits) in w.row(row).chunks(GROUP).enumerate() {
            data[(group / GROUPS * n_rows + row) * GROUPS + group % GROUPS] = (balanced::number(trits) + OFFSET) as u8;
        }
    }
    PackedMatrix { n, k, data: data.into() }
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    let trit = |row: usize, column: usize| {
        let code = slice(packed, column / TILE_K, row..row + 1)[0][column % TILE_K / GROUP];
        balanced::trits::<GROUP>(i32::from(code) - OFFSET)[column % GROUP]
    };
    (0..packed.n * packed.k).map(|i| trit(i / packed.k, i % packed.k)).collect()
}

/// The bytes of columns `16 index .. 16 index + 16` of some rows.
pub fn slice(packed: &PackedMatrix, index: usize, rows: Range<usize>) -> &[Quad] {
    let n_rows = packed.n.next_multiple_of(TILE_ROWS);
    &packed.data.as_chunks().0[index * n_rows..][..n_rows][rows]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::matrix;

    #[test]
    fn bytes_lie_as_documented() {
        // 40 + 1 - 3 + 0 + 27 = 65, and a group cut off after -1 is 39.
        let packed = pack(&matrix(1, 5, |_, column| [1, -1, 0, 1, -1][column]));
        assert_eq!(packed.data.len(), 8 * 4);
        assert_eq!(packed.data[..4], [65, 39, 40, 40]);
        assert!(packed.data[4..].iter().all(|&byte| byte == 40), "padding rows are zero trits");

        // 16 rows; column 21 is column 1 of group 1 of the second slice.
        let packed = pack(&matrix(9, 22, |row, column| if (row, column) == (8, 21) { -1 } else { 0 }));
        assert_eq!(packed.data.len(), 2 * 16 * 4);
        let changed: Vec<(usize, u8)> =
            packed.data.iter().copied().enumerate().filter(|&(_, byte)| byte != 40).collect();
        assert_eq!(changed, [((16 + 8) * 4 + 1, 37)]);
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 3), (7, 15), (8, 16), (9, 17), (129, 131)] {
            let w = matrix(n, k, |row, column| ((row * 7 + column * 5 + row * column) % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }
}
