//! The score on any CPU: what the vector code is tested against.

use std::ops::Range;

use super::rows::{FIFTH_BITS, GROUP_ROWS, Rows};
use super::{Query, QueryBlock, TINY};

/// See [`super::Score`].
pub fn score(rows: &Rows, queries: &[Query], groups: Range<usize>, scores: &mut [f32], bounds: &mut [f32]) {
    let n_rows = scores.len() / queries.len();
    let out = scores.chunks_exact_mut(n_rows).zip(bounds.chunks_exact_mut(n_rows));
    for (query, (scores, bounds)) in queries.iter().zip(out) {
        score_one(rows, query, groups.clone(), scores, bounds);
    }
}

fn score_one(rows: &Rows, query: &Query, groups: Range<usize>, scores: &mut [f32], bounds: &mut [f32]) {
    let out = scores.chunks_mut(GROUP_ROWS).zip(bounds.chunks_mut(GROUP_ROWS));
    for (group, (scores, bounds)) in groups.zip(out) {
        let (tiles, factors) = rows.group(group);
        let mut sums = [0f32; GROUP_ROWS];
        for (tile, QueryBlock { x, scale, .. }) in tiles.iter().zip(&query.blocks) {
            let mut lanes = [0i32; 4 * GROUP_ROWS];
            for (quad, x) in x.as_chunks::<4>().0.iter().enumerate() {
                for (byte, lane) in lanes.iter_mut().enumerate() {
                    let low = tile[quad / 2 * 32 + byte] >> (quad % 2 * 4) & 15;
                    let high = (tile[FIFTH_BITS.start + byte] >> quad & 1) << 4;
                    *lane += (i32::from(low | high) - 16) * i32::from(x[byte % 4]);
                }
            }
            for (row, (sum, lanes)) in sums.iter_mut().zip(lanes.as_chunks::<4>().0).enumerate() {
                let block = lanes.iter().sum::<i32>() * i32::from(tile[FIFTH_BITS.end + row]);
                *sum += scale * block as f32;
            }
        }
        for (row, (score, bound)) in scores.iter_mut().zip(bounds).enumerate() {
            *score = sums[row] * factors.scale[row];
            let slack = query.of_residual * factors.residual[row] + query.of_norm * factors.norm[row] + TINY as f32;
            *bound = *score + slack;
        }
    }
}
