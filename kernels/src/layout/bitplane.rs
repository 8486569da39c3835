//! Layout `bitplane`: one bit per weight and sign, 16 rows interleaved.
//!
//! Two planes of bits: one says where the weights are +1, one where they are -1. A step is 16 rows x 8 columns in 32
//! bytes, two for each row: bit `i` of byte `2 r` is column `i` of row `r` in the plane of +1, bit `i` of byte `2 r + 1` in
//! the plane of -1. The steps of 16 rows follow each other along `k`.
//!
//! A nibble of either plane is an index into the same table, the 16 sums of some of 4 activations; and what both planes
//! gave a row lies side by side, where `vpmaddubsw` by 1 and -1 subtracts one from the other.

use crate::bytes::AlignedBytes;
use crate::kernel::PackedMatrix;
#[cfg(target_arch = "x86_64")]
use crate::kernel::STREAMS;
use crate::trit::TernaryMatrix;

/// Rows of a step. `n` is padded to a multiple of it.
pub const TILE_ROWS: usize = 16;
/// Weights that share a table.
pub const GROUP: usize = 4;
/// Tables of a step: one for the low nibbles, one for the high ones.
pub const GROUPS: usize = 2;
/// Columns of a step. `k` is padded to a multiple of it.
pub const TILE_K: usize = GROUP * GROUPS;

/// The bits of every nibble.
pub const CODES: [[i8; GROUP]; 16] = {
    let (mut codes, mut i) = ([[0; GROUP]; 16], 0);
    while i < 16 * GROUP {
        codes[i / GROUP][i % GROUP] = ((i / GROUP) >> (i % GROUP) & 1) as i8;
        i += 1;
    }
    codes
};

/// One step as stored.
pub type Step = [u8; 2 * TILE_ROWS];

/// What the planes of a row count for: a step's two bytes of it, as a `vpmaddubsw` takes them.
#[cfg(target_arch = "x86_64")]
pub(crate) const SIGNS: i16 = i16::from_le_bytes([1, -1i8 as u8]);

/// Lays out `w`; padded rows and columns hold zero trits (no bit in either plane).
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    let (n, k) = (w.n(), w.k());
    let steps_per_row = k.div_ceil(TILE_K);
    let mut data = AlignedBytes::zeroed(n.div_ceil(TILE_ROWS) * steps_per_row * size_of::<Step>());
    for row in 0..n {
        let steps: &mut [Step] = data.as_chunks_mut().0;
        let steps = &mut steps[row / TILE_ROWS * steps_per_row..][..steps_per_row];
        let (whole, rest) = w.row(row).as_chunks();
        let mut last = [0; TILE_K];
        last[..rest.len()].copy_from_slice(rest);
        for (trits, step) in whole.iter().chain([&last]).zip(steps) {
            step.as_chunks_mut().0[row % TILE_ROWS] = planes(*trits);
        }
    }
    PackedMatrix { n, k, data: data.into() }
}

/// The bits of +1, and those of -1: -1 is the byte of all ones.
fn planes(trits: [i8; TILE_K]) -> [u8; 2] {
    let trits = u64::from_le_bytes(trits.map(i8::cast_unsigned));
    // A bit at the bottom of each byte, brought together in the highest byte, where no two of the product's terms meet.
    let together = |bits: u64| ((bits & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    [together(trits & !(trits >> 1)), together(trits >> 1)]
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack(packed: &PackedMatrix) -> Vec<i8> {
    let trit = |row: usize, column: usize| {
        let step = &tile(packed, row / TILE_ROWS)[column / TILE_K];
        let [plus, minus] = step.as_chunks().0[row % TILE_ROWS].map(|plane: u8| (plane >> (column % TILE_K) & 1) as i8);
        plus - minus
    };
    (0..packed.n * packed.k).map(|i| trit(i / packed.k, i % packed.k)).collect()
}

/// The steps of rows `16 index .. 16 index + 16`, along `k`.
pub fn tile(packed: &PackedMatrix, index: usize) -> &[Step] {
    let steps_per_row = packed.k.div_ceil(TILE_K);
    &packed.data.as_chunks().0[index * steps_per_row..][..steps_per_row]
}

/// Row tiles of a quarter of `n_tiles`. Of many an odd number, so that quarters of 2560 or 6912 columns, which are read side by side, are not whole
/// pages of memory apart: on Zen 3 that costs some hundredths of the bandwidth.
#[cfg(target_arch = "x86_64")]
pub(crate) fn quarter(n_tiles: usize) -> usize {
    match n_tiles.div_ceil(STREAMS) {
        // What one more would be of a few.
        few @ ..16 => few,
        many => many | 1,
    }
}

/// Where row tiles `tile` of each [`quarter`] of a range lie, and their steps. The last quarters may hold fewer tiles or none: they read the
/// last tile again, for nothing.
#[cfg(target_arch = "x86_64")]
pub(crate) fn apart(
    w: &PackedMatrix,
    first: usize,
    n_tiles: usize,
    tile: usize,
) -> ([Option<usize>; STREAMS], [&[Step]; STREAMS]) {
    let (mut at, mut tiles): (_, [&[Step]; STREAMS]) = ([None; STREAMS], [&[]; STREAMS]);
    for s in 0..STREAMS {
        let here = tile + s * quarter(n_tiles);
        at[s] = (here < n_tiles).then_some(here);
        tiles[s] = self::tile(w, first + here.min(n_tiles - 1));
    }
    (at, tiles)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::matrix;

    #[test]
    fn bytes_lie_as_documented() {
        let packed = pack(&matrix(1, 8, |_, column| [1, -1, 0, 1, 0, 0, -1, -1][column]));
        assert_eq!(packed.data.len(), 32);
        assert_eq!(packed.data[..2], [0b0000_1001, 0b1100_0010]);
        assert!(packed.data[2..].iter().all(|&byte| byte == 0), "padding rows are zero trits");

        // Row 17 is row 1 of the second tile; column 9 is column 1 of its second step.
        let packed = pack(&matrix(18, 10, |row, column| if (row, column) == (17, 9) { -1 } else { 0 }));
        assert_eq!(packed.data.len(), 4 * 32);
        let changed: Vec<(usize, u8)> =
            packed.data.iter().copied().enumerate().filter(|&(_, byte)| byte != 0).collect();
        assert_eq!(changed, [(3 * 32 + 3, 0b0000_0010)]);
        assert_eq!(CODES[0b1010], [0, 1, 0, 1]);
    }

    #[test]
    fn unpack_undoes_pack() {
        for (n, k) in [(1, 1), (2, 3), (15, 4), (16, 8), (17, 9), (65, 131)] {
            let w = matrix(n, k, |row, column| ((row * 7 + column * 5 + row * column) % 3) as i8 - 1);
            assert_eq!(unpack(&pack(&w)), w.trits(), "{n} x {k}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn quarters_hold_every_tile_once() {
        let packed = pack(&matrix(210 * TILE_ROWS, 8, |row, _| (row % 3) as i8 - 1));
        for (first, n_tiles) in (1..=200).map(|n| (n % 10, n)) {
            let mut seen = vec![0; n_tiles];
            for tile in 0..quarter(n_tiles) {
                let (at, tiles) = apart(&packed, first, n_tiles, tile);
                for (at, steps) in at.into_iter().zip(tiles) {
                    if let Some(at) = at {
                        seen[at] += 1;
                        assert_eq!(steps.as_ptr(), super::tile(&packed, first + at).as_ptr());
                    }
                }
            }
            assert_eq!(seen, vec![1; n_tiles]);
        }
        assert_eq!([60, 61, 160, 432].map(quarter), [15, 17, 41, 109]);
    }
}
