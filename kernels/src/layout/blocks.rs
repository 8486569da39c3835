//! What llama.cpp's ternary layouts (`tq1`, `tq2`) share: every row is a sequence of blocks of 256 weights, each with an f16
//! scale in its last two bytes. All blocks of a tensor hold the tensor's scale, which the driver applies; kernels skip it.

use half::f16;

use crate::bytes::AlignedBytes;
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// Weights of a block. `k` is padded to a multiple of it.
pub const BLOCK: usize = 256;

/// Lays out `w` in blocks of `BYTES`: `encode` gives the bytes before the scale. Padded columns are zero trits.
pub fn pack<const BYTES: usize>(w: &TernaryMatrix, encode: impl Fn(&[i8; BLOCK], &mut [u8])) -> PackedMatrix {
    let (n, k) = (w.n(), w.k());
    let per_row = k.div_ceil(BLOCK);
    let mut data = AlignedBytes::zeroed(n * per_row * BYTES);
    let scale = f16::from_f32(w.scale()).to_le_bytes();
    for row in 0..n {
        let blocks = &mut data.as_chunks_mut::<BYTES>().0[row * per_row..][..per_row];
        for (block, trits) in blocks.iter_mut().zip(w.row(row).chunks(BLOCK)) {
            let mut padded = [0; BLOCK];
            padded[..trits.len()].copy_from_slice(trits);
            let (codes, slot) = block.split_at_mut(BYTES - 2);
            encode(&padded, codes);
            slot.copy_from_slice(&scale);
        }
    }
    PackedMatrix { n, k, data: data.into() }
}

/// The trits of a packed matrix, row-major, without padding.
pub fn unpack<const BYTES: usize>(packed: &PackedMatrix, decode: impl Fn(&[u8], &mut [i8])) -> Vec<i8> {
    let mut trits = Vec::with_capacity(packed.n * packed.k.next_multiple_of(BLOCK));
    for index in 0..packed.n {
        for block in row::<BYTES>(packed, index) {
            let mut columns = [0; BLOCK];
            decode(block, &mut columns);
            trits.extend_from_slice(&columns);
        }
        trits.truncate((index + 1) * packed.k);
    }
    trits
}

/// The blocks of row `index`.
pub fn row<const BYTES: usize>(packed: &PackedMatrix, index: usize) -> &[[u8; BYTES]] {
    let per_row = packed.k.div_ceil(BLOCK);
    &packed.data.as_chunks().0[index * per_row..][..per_row]
}
