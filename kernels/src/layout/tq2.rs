//! Layout `tq2`: llama.cpp's TQ2_0, byte for byte. A block of 256 weights is 64 bytes of 2-bit codes `w + 1` and an f16 scale:
//! bit pair `p` of byte `32 h + i` is column `128 h + 32 p + i`. 66 bytes, 2.0625 bits per weight.

use super::blocks::{self, BLOCK};
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// Bytes of a block.
pub const BYTES: usize = 66;

/// Lays out `w`; padded columns hold zero trits.
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    blocks::pack::<BYTES>(w, |trits, codes| {
        for (column, &trit) in trits.iter().enumerate() {
            codes[column / 128 * 32 + column % 32] |= ((trit + 1) as u8) << (column / 32 % 4 * 2);
        }
    })
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    blocks::unpack::<BYTES>(packed, read)
}

/// The 256 trits of a block.
pub fn read(block: &[u8], trits: &mut [i8]) {
    for (column, trit) in trits.iter_mut().enumerate().take(BLOCK) {
        *trit = (block[column / 128 * 32 + column % 32] >> (column / 32 % 4 * 2) & 3) as i8 - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::matrix;

    #[test]
    fn bytes_lie_as_documented() {
        // Byte 1 holds columns 1, 33, 65, 97; byte 32 + 31 holds columns 159, 191, 223, 255.
        let w = matrix(1, 256, |_, k| match k {
            1 | 255 => 1,
            33 => -1,
            _ => 0,
        });
        let packed = pack(&w);
        assert_eq!(packed.data.len(), BYTES);
        assert_eq!(packed.data[..2], [0b01_01_01_01, 0b01_01_00_10]);
        assert_eq!(packed.data[63], 0b10_01_01_01);
        assert_eq!(packed.data[64..], [0x00, 0x3A], "0.75 in f16, little endian");
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 255), (3, 256), (2, 257), (5, 640)] {
            let w = matrix(n, k, |row, k| ((row * 7 + k * 5) % 11 % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }
}
