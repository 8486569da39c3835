//! Layout `tq1`: llama.cpp's TQ1_0, byte for byte. A block of 256 weights is 52 bytes of base-3 fractions, as in
//! [`super::b3`], and an f16 scale; 54 bytes, 1.6875 bits per weight. The digits of a byte lie far apart, first digit first:
//!
//! | bytes | digit `d` of byte `i` is column |
//! |---|---|
//! | 0..32 | `32 d + i` |
//! | 32..48 | `160 + 16 d + i` |
//! | 48..52 | `240 + 4 d + i`, four digits; the fifth is always 0 |

use super::b3::{DECODED, DIGITS, encode};
use super::blocks::{self, BLOCK};
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// Bytes of a block.
pub const BYTES: usize = 54;
/// First byte, first column, and bytes of each part.
const PARTS: [(usize, usize, usize); 3] = [(0, 0, 32), (32, 160, 16), (48, 240, 4)];

/// Lays out `w`; padded columns hold zero trits.
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    blocks::pack::<BYTES>(w, |trits, codes| {
        for (at, column, len) in PARTS {
            for i in 0..len {
                // The trit of a digit 0 is -1: so that column 256 and beyond, which do not exist, are digits 0.
                let mut digits = [-1; DIGITS];
                for (d, digit) in digits.iter_mut().enumerate() {
                    *digit = trits.get(column + len * d + i).copied().unwrap_or(-1);
                }
                codes[at + i] = encode(digits);
            }
        }
    })
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    blocks::unpack::<BYTES>(packed, read)
}

/// The 256 trits of a block.
pub fn read(block: &[u8], trits: &mut [i8]) {
    for (at, column, len) in PARTS {
        for i in 0..len {
            for (d, &trit) in DECODED[usize::from(block[at + i])].iter().enumerate() {
                let column = column + len * d + i;
                if column < BLOCK {
                    trits[column] = trit;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::matrix;

    #[test]
    fn bytes_lie_as_documented() {
        let w = matrix(1, 256, |_, k| match k {
            // Byte 1, digits 0 and 1; byte 33, digit 1; byte 49, digit 3.
            1 | 177 | 253 => 1,
            33 => -1,
            _ => 0,
        });
        let packed = pack(&w);
        assert_eq!(packed.data.len(), BYTES);
        // 11111 in base 3 is 121, 20111 is 175, 12111 is 148, and the last four bytes end in 0: 11110 is 120, 11120 is 123.
        let fraction = |v: usize| (256 * v).div_ceil(243) as u8;
        assert_eq!(packed.data[..3], [fraction(121), fraction(175), fraction(121)]);
        assert_eq!(packed.data[32..35], [fraction(121), fraction(148), fraction(121)]);
        assert_eq!(packed.data[48..52], [fraction(120), fraction(123), fraction(120), fraction(120)]);
        assert_eq!(packed.data[52..], [0x00, 0x3A], "0.75 in f16, little endian");
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 255), (3, 256), (2, 257), (5, 640)] {
            let w = matrix(n, k, |row, k| ((row * 7 + k * 5) % 11 % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }
}
