//! Layout `i2s`: two bits per weight, rows interleaved (see [`super::interleaved`]).
//!
//! A tile is 32 rows x 16 columns in one plane. In byte `j` of a row's dword the bit pair `p` (bits `2p+1..2p`) holds the code
//! `w + 1` of column `4p + j`: a shift and an AND leave the codes of 4 neighbouring columns in every dword.

use super::interleaved::Shape;
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// 16 columns in 128 bytes.
pub const SHAPE: Shape = Shape { columns: 16, planes: 1 };

/// Lays out `w`; padded rows and columns hold zero trits.
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    SHAPE.pack(w, |tile, r, trits| {
        for (column, &trit) in trits.iter().enumerate() {
            tile[4 * r + column % 4] |= ((trit + 1) as u8) << (2 * (column / 4));
        }
    })
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    SHAPE.unpack(packed, read)
}

/// The 16 trits of row `r` of a tile.
pub fn read(tile: &[u8], r: usize, trits: &mut [i8]) {
    let dword = u32::from_le_bytes([tile[4 * r], tile[4 * r + 1], tile[4 * r + 2], tile[4 * r + 3]]);
    for (p, trits) in trits.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *trits = (dword >> (2 * p) & 0x0303_0303).to_le_bytes().map(|code| code as i8 - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::matrix;

    /// A zero trit (code 1) in every bit pair.
    const ZEROS: u8 = 0b01_01_01_01;

    #[test]
    fn bytes_lie_as_documented() {
        // Row 0: columns 0, 4, 8, 12 share byte 0, lowest bits first: codes 2, 0, 1, 2 give 0b10_01_00_10.
        let w = matrix(1, 16, |_, k| [1, 0, 0, 0, -1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][k]);
        let packed = pack(&w);
        assert_eq!(packed.data.len(), SHAPE.bytes());
        assert_eq!(packed.data[..4], [0b10_01_00_10, ZEROS, ZEROS, ZEROS]);
        assert!(packed.data[4..].iter().all(|&byte| byte == ZEROS), "padding rows are zero trits");

        // Row 33 is row 1 of the second row tile; column 17 is column 1 of its second tile: byte 1 of dword 1 of tile 3.
        let packed = pack(&matrix(34, 18, |row, k| if (row, k) == (33, 17) { -1 } else { 0 }));
        assert_eq!(packed.data.len(), 4 * SHAPE.bytes());
        let changed: Vec<usize> = (0..packed.data.len()).filter(|&i| packed.data[i] != ZEROS).collect();
        assert_eq!(changed, [3 * SHAPE.bytes() + 4 + 1]);
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
