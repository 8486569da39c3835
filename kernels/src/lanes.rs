//! Tokens as lanes: activations transposed, so that a vector holds one column of many tokens.

use crate::activation::QuantizedActivations;
use crate::kernel::Prepared;

/// Tokens that lie beside each other. Their number is padded to a multiple of it.
pub const LANES: usize = 32;

/// A column of 32 tokens.
pub type Column = [i8; LANES];

/// Tokens and columns that are transposed at once.
const BLOCK: usize = 16;

/// Transposes `x`: all columns of 32 tokens follow each other, then come those of the next 32. Tokens and columns (to a multiple
/// of 16) are padded with zeros.
pub fn fill(x: &QuantizedActivations, out: &mut Prepared) {
    let columns = x.k.next_multiple_of(BLOCK);
    (out.m, out.stride) = (x.m, columns * LANES);
    out.bytes.ensure_len(out.stride * x.m.div_ceil(LANES));
    for (chunk, bytes) in out.bytes.as_i8_mut().chunks_exact_mut(out.stride.max(1)).enumerate() {
        for first_token in (0..LANES).step_by(BLOCK) {
            for (block, bytes) in bytes.chunks_exact_mut(BLOCK * LANES).enumerate() {
                let mut values = [[0; BLOCK]; BLOCK];
                let here = block * BLOCK..x.k.min((block + 1) * BLOCK);
                let tokens = chunk * LANES + first_token..x.m.min(chunk * LANES + first_token + BLOCK);
                for (token, values) in tokens.zip(&mut values) {
                    values[..here.len()].copy_from_slice(&x.row(token)[here.clone()]);
                }
                for (column, values) in bytes.as_chunks_mut::<LANES>().0.iter_mut().zip(transposed(values)) {
                    column[first_token..][..BLOCK].copy_from_slice(&values);
                }
            }
        }
    }
}

/// Four perfect shuffles. Written out so that each is a byte interleave, one instruction on every CPU with vectors.
fn transposed(mut rows: [[i8; BLOCK]; BLOCK]) -> [[i8; BLOCK]; BLOCK] {
    for _ in 0..4 {
        let mut next = [[0; BLOCK]; BLOCK];
        for i in 0..BLOCK / 2 {
            for j in 0..BLOCK / 2 {
                (next[2 * i][2 * j], next[2 * i][2 * j + 1]) = (rows[i][j], rows[i + 8][j]);
                (next[2 * i + 1][2 * j], next[2 * i + 1][2 * j + 1]) = (rows[i][j + 8], rows[i + 8][j + 8]);
            }
        }
        rows = next;
    }
    rows
}

/// The columns of tokens `32 chunk .. 32 chunk + 32`.
pub fn of(x: &Prepared, chunk: usize) -> &[Column] {
    x.bytes.as_i8()[chunk * x.stride..][..x.stride].as_chunks().0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{activations, legal};

    #[test]
    fn tokens_become_lanes() {
        for (m, k) in [(1, 1), (15, 17), (32, 16), (33, 33), (70, 5)] {
            let x = activations(m, k, |token, column| legal(token * 37 + column * 5));
            let mut out = Prepared::default();
            fill(&activations(m + 40, k + 40, |_, _| 1), &mut out);
            fill(&x, &mut out);
            for token in 0..m.next_multiple_of(LANES) {
                let columns = of(&out, token / LANES);
                assert_eq!(columns.len(), k.next_multiple_of(16));
                for (column, values) in columns.iter().enumerate() {
                    let expected = if token < m && column < k { x.row(token)[column] } else { 0 };
                    assert_eq!(values[token % LANES], expected, "{m} x {k}: token {token}, column {column}");
                }
            }
        }
    }
}
