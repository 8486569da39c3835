//! Layout `b3`: five trits a byte in base 3, 1.6 bits per weight, rows interleaved (see [`super::interleaved`]).
//!
//! A tile is 32 rows x 20 columns in one plane. Byte `j` of a row's dword holds columns `j`, `4 + j` .. `16 + j`: their codes
//! `w + 1` are the digits, the first column's the most significant, of a number `v` in 0..243. What is stored is the fraction
//! `v / 243` in 256ths, rounded up: `q = ⌈256 v / 243⌉`. Then `⌊3 q / 256⌋` is the first digit and `3 q mod 256` the fraction of
//! the rest: a decoder multiplies by 3 in a byte, lets it wrap, and compares with 256/3 and 512/3.

use super::interleaved::Shape;
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// 20 columns in 128 bytes.
pub const SHAPE: Shape = Shape { columns: 20, planes: 1 };
/// Trits of a byte.
pub const DIGITS: usize = 5;

/// Lays out `w`; padded rows and columns hold zero trits.
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    SHAPE.pack(w, |tile, r, trits| {
        for (j, byte) in tile[4 * r..4 * r + 4].iter_mut().enumerate() {
            *byte = encode([trits[j], trits[4 + j], trits[8 + j], trits[12 + j], trits[16 + j]]);
        }
    })
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    SHAPE.unpack(packed, read)
}

/// The 20 trits of row `r` of a tile.
pub fn read(tile: &[u8], r: usize, trits: &mut [i8]) {
    for (j, &byte) in tile[4 * r..4 * r + 4].iter().enumerate() {
        for (p, &trit) in DECODED[usize::from(byte)].iter().enumerate() {
            trits[4 * p + j] = trit;
        }
    }
}

/// The byte of five trits, the first the most significant digit.
pub const fn encode(trits: [i8; DIGITS]) -> u8 {
    let (mut v, mut i) = (0, 0);
    while i < DIGITS {
        v = 3 * v + (trits[i] + 1) as u32;
        i += 1;
    }
    (256 * v).div_ceil(243) as u8
}

/// The trits of every byte.
pub static DECODED: [[i8; DIGITS]; 256] = {
    let mut decoded = [[0; DIGITS]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut q, mut i) = (byte as u32, 0);
        while i < DIGITS {
            q *= 3;
            decoded[byte][i] = (q >> 8) as i8 - 1;
            q &= 255;
            i += 1;
        }
        byte += 1;
    }
    decoded
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::matrix;

    #[test]
    fn bytes_lie_as_documented() {
        // Columns 0, 4, 8, 12, 16 are +1 -1 0 +1 -1: 20120 in base 3 is 177, and 256 · 177 / 243 = 186.5.
        let w = matrix(1, 20, |_, k| [1, 0, 0, 0, -1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, -1, 0, 0, 0][k]);
        let packed = pack(&w);
        assert_eq!(packed.data.len(), SHAPE.bytes());
        // All zero trits: 11111 in base 3 is 121, and 256 · 121 / 243 = 127.5.
        assert_eq!(packed.data[..4], [187, 128, 128, 128]);
        assert!(packed.data[4..].iter().all(|&byte| byte == 128), "padding rows are zero trits");

        // Row 33 is row 1 of the second row tile; column 21 is column 1 of its second tile.
        let packed = pack(&matrix(34, 22, |row, k| if (row, k) == (33, 21) { 1 } else { 0 }));
        assert_eq!(packed.data.len(), 4 * SHAPE.bytes());
        let changed: Vec<usize> = (0..packed.data.len()).filter(|&i| packed.data[i] != 128).collect();
        assert_eq!(changed, [3 * SHAPE.bytes() + 4 + 1]);
    }

    #[test]
    fn every_number_survives() {
        let mut seen = std::collections::BTreeSet::new();
        for v in 0..243 {
            let trits = [81, 27, 9, 3, 1].map(|power| (v / power % 3) as i8 - 1);
            assert_eq!(DECODED[usize::from(encode(trits))], trits, "{v}");
            assert!(seen.insert(encode(trits)));
        }
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 19), (31, 20), (32, 21), (33, 41), (65, 130)] {
            let w = matrix(n, k, |row, k| ((row * 7 + k * 5) % 11 % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }
}
