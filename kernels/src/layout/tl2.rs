//! Layout `tl2`: a nibble and a sign bit per three weights, 64 rows interleaved.
//!
//! Three trits are a number from -13 to 13 in balanced ternary, `v = w0 + 3 w1 + 9 w2`. The nibble is `|v|`, one of 14,
//! and the sign bit is 1 where `v` is negative: the table needs no entries for negative numbers.
//!
//! A chunk is 64 rows x 24 columns, 8 groups, in 320 bytes: four times 64 nibble bytes (byte `r` for row `r`, the even
//! group in its low nibble, the odd one in its high nibble), then 64 sign bytes (bit `7 - j` for group `j`). The chunks
//! of 64 rows follow each other along `k`.

use crate::bytes::AlignedBytes;
use crate::kernel::PackedMatrix;
use crate::layout::balanced;
use crate::trit::TernaryMatrix;

/// Rows of a chunk. `n` is padded to a multiple of it.
pub const TILE_ROWS: usize = 64;
/// Columns of a chunk. `k` is padded to a multiple of it.
pub const TILE_K: usize = GROUP * GROUPS;
/// Weights that share a nibble.
pub const GROUP: usize = 3;
/// Groups of a chunk.
pub const GROUPS: usize = 8;
/// Vectors of 64 nibble bytes in a chunk; the sign bytes follow.
pub const INDEX_VECTORS: usize = GROUPS / 2;

/// The trits of every nibble, where the sign bit is 0; the last 2 stand for nothing.
pub const CODES: [[i8; GROUP]; 16] = balanced::codes(0, 14);

/// One chunk as stored: nibbles, nibbles, nibbles, nibbles, signs.
pub type Chunk = [[u8; TILE_ROWS]; INDEX_VECTORS + 1];

const CHUNK_BYTES: usize = size_of::<Chunk>();

/// Lays out `w`; padded rows and columns hold zero trits (nibble 0, sign 0).
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    let (n, k) = (w.n(), w.k());
    let chunks_per_row = k.div_ceil(TILE_K);
    let mut data = AlignedBytes::zeroed(n.div_ceil(TILE_ROWS) * chunks_per_row * CHUNK_BYTES);
    for row in 0..n {
        let (tile, r) = (row / TILE_ROWS, row % TILE_ROWS);
        for (chunk, trits) in w.row(row).chunks(TILE_K).enumerate() {
            let bytes = &mut data[(tile * chunks_per_row + chunk) * CHUNK_BYTES..][..CHUNK_BYTES];
            for (j, trits) in trits.chunks(GROUP).enumerate() {
                let number = balanced::number(trits);
                bytes[j / 2 * TILE_ROWS + r] |= (number.unsigned_abs() as u8) << (4 * (j % 2));
                bytes[INDEX_VECTORS * TILE_ROWS + r] |= u8::from(number < 0) << (7 - j);
            }
        }
    }
    PackedMatrix { n, k, data: data.into() }
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    let trit = |row: usize, column: usize| {
        let (r, j) = (row % TILE_ROWS, column % TILE_K / GROUP);
        let chunk = &tile(packed, row / TILE_ROWS)[column / TILE_K];
        let trit = CODES[usize::from(chunk[j / 2][r] >> (4 * (j % 2)) & 15)][column % GROUP];
        if chunk[INDEX_VECTORS][r] >> (7 - j) & 1 == 1 { -trit } else { trit }
    };
    (0..packed.n * packed.k).map(|i| trit(i / packed.k, i % packed.k)).collect()
}

/// The chunks of rows `64 index .. 64 index + 64`, along `k`.
pub fn tile(packed: &PackedMatrix, index: usize) -> &[Chunk] {
    let chunks_per_row = packed.k.div_ceil(TILE_K);
    let vectors = packed.data.as_chunks().0;
    &vectors.as_chunks().0[index * chunks_per_row..][..chunks_per_row]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::matrix;

    #[test]
    fn bytes_lie_as_documented() {
        // Group 0 is 1 - 3 + 9 = 7, group 1 is 0 + 3 - 9 = -6, group 2 is cut off after -1: -1.
        let packed = pack(&matrix(1, 7, |_, column| [1, -1, 1, 0, 1, -1, -1][column]));
        assert_eq!(packed.data.len(), 320);
        assert_eq!((packed.data[0], packed.data[64], packed.data[128], packed.data[192]), (0x67, 0x01, 0, 0));
        assert_eq!(packed.data[256], 0b0110_0000);
        let zeros = packed.data.iter().filter(|&&byte| byte == 0).count();
        assert_eq!(zeros, 320 - 3, "padding is zero trits");

        // Row 65 is row 1 of the second tile; column 47 is the last of group 7 of its second chunk, worth 9.
        let packed = pack(&matrix(66, 48, |row, column| if (row, column) == (65, 47) { -1 } else { 0 }));
        assert_eq!(packed.data.len(), 4 * 320);
        let changed: Vec<(usize, u8)> =
            packed.data.iter().copied().enumerate().filter(|&(_, byte)| byte != 0).collect();
        assert_eq!(changed, [(3 * 320 + 3 * 64 + 1, 0x90), (3 * 320 + 4 * 64 + 1, 0b0000_0001)]);
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 3), (63, 23), (64, 24), (65, 25), (129, 131)] {
            let w = matrix(n, k, |row, column| ((row * 7 + column * 5 + row * column) % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }
}
