//! Layout `t5`: three trits in five bits, 1.67 bits per weight, rows interleaved (see [`super::interleaved`]).
//!
//! A tile is 32 rows x 96 columns in five planes. In every byte position there are eight codes of five bits. Code `c` of
//! position `j` stands for columns `12 c + j`, `12 c + 4 + j`, `12 c + 8 + j`, its digits `w + 1` in base 3, the first column's the
//! least significant: 0..27. Plane `p < 4` holds the low four bits of code `2p` in its low nibbles and those of code `2p + 1` in
//! its high nibbles; bit `c` of the last plane is the fifth bit of code `c`.
//!
//! The codes are cut into 4 + 1 bits, not laid end to end, because byte shuffles look up 16 entries and vectors shift by the same
//! count everywhere: the fifth bit chooses between two look-ups. A code across two bytes costs AVX2 nine instructions, this two.

use super::interleaved::{PLANE_BYTES, Shape};
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// 96 columns in 640 bytes.
pub const SHAPE: Shape = Shape { columns: 96, planes: 5 };
/// Codes of a byte position.
const CODES: usize = 8;
/// Where the plane of fifth bits begins.
const FIFTH: usize = 4 * PLANE_BYTES;

/// Lays out `w`; padded rows and columns hold zero trits.
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    SHAPE.pack(w, |tile, r, trits| {
        for (c, trits) in trits.as_chunks::<12>().0.iter().enumerate() {
            for j in 0..4 {
                let digit = |i: usize| (trits[4 * i + j] + 1) as u8;
                let code = digit(0) + 3 * digit(1) + 9 * digit(2);
                tile[c / 2 * PLANE_BYTES + 4 * r + j] |= (code & 15) << (4 * (c % 2));
                tile[FIFTH + 4 * r + j] |= code >> 4 << c;
            }
        }
    })
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    SHAPE.unpack(packed, read)
}

/// The 96 trits of row `r` of a tile.
pub fn read(tile: &[u8], r: usize, trits: &mut [i8]) {
    for (c, trits) in trits.as_chunks_mut::<12>().0.iter_mut().enumerate().take(CODES) {
        for j in 0..4 {
            let low = tile[c / 2 * PLANE_BYTES + 4 * r + j] >> (4 * (c % 2)) & 15;
            let [a, b, c] = trits_of(low | (tile[FIFTH + 4 * r + j] >> c & 1) << 4);
            (trits[j], trits[4 + j], trits[8 + j]) = (a, b, c);
        }
    }
}

/// The three trits of a code.
pub const fn trits_of(code: u8) -> [i8; 3] {
    [(code % 3) as i8 - 1, (code / 3 % 3) as i8 - 1, (code / 9) as i8 - 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::matrix;

    #[test]
    fn bytes_lie_as_documented() {
        // Row 0, columns 12, 16, 20 are code 1 of position 0: +1 +1 0 gives 2 + 3·2 + 9·1 = 17 = 0b1_0001.
        let w = matrix(1, 96, |_, k| [0, 1][usize::from(k == 12 || k == 16)]);
        let packed = pack(&w);
        assert_eq!(packed.data.len(), SHAPE.bytes());
        // All zero trits: 1 + 3 + 9 = 13 = 0b0_1101.
        assert_eq!(packed.data[..4], [0x1D, 0xDD, 0xDD, 0xDD]);
        assert!(packed.data[4..FIFTH].iter().all(|&byte| byte == 0xDD), "padding rows are zero trits");
        assert_eq!(packed.data[FIFTH..FIFTH + 4], [0b10, 0, 0, 0]);
        assert!(packed.data[FIFTH + 4..].iter().all(|&byte| byte == 0));

        // Row 33 is row 1 of the second row tile; column 97 is position 1 of code 0 of its second tile: 13 - 1 = 12.
        let packed = pack(&matrix(34, 98, |row, k| if (row, k) == (33, 97) { -1 } else { 0 }));
        assert_eq!(packed.data.len(), 4 * SHAPE.bytes());
        assert_eq!(packed.data[3 * SHAPE.bytes() + 4 + 1], 0xDC);
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 95), (31, 96), (32, 97), (33, 41), (65, 230)] {
            let w = matrix(n, k, |row, k| ((row * 7 + k * 5) % 11 % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }
}
