//! The score on any CPU: what the vector code is tested against.

use std::ops::Range;

use super::rows::{CODE_BYTES, GROUP_ROWS, Rows, TILE_BYTES, code};
use super::{Found, Query, QueryBlock, finish};

/// See [`super::Score`].
pub fn score(rows: &Rows, queries: &[Query], groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
    for group in groups {
        let (tiles, factors) = rows.group(group);
        for (query, least) in queries.iter().enumerate().zip(&mut *least) {
            finish(rows, group, &factors, query, &sums(query.1, tiles), least, found);
        }
    }
}

fn sums(query: &Query, tiles: &[[u8; TILE_BYTES]]) -> [f32; GROUP_ROWS] {
    let mut sums = [0f32; GROUP_ROWS];
    for (tile, QueryBlock { x, scale, .. }) in tiles.iter().zip(&query.blocks) {
        let mut lanes = [0i32; 4 * GROUP_ROWS];
        for (quad, x) in x.as_chunks::<4>().0.iter().enumerate() {
            for (byte, lane) in lanes.iter_mut().enumerate() {
                *lane += (i32::from(code(tile, quad, byte)) - 16) * i32::from(x[byte % 4]);
            }
        }
        for (row, (sum, lanes)) in sums.iter_mut().zip(lanes.as_chunks::<4>().0).enumerate() {
            let block = lanes.iter().sum::<i32>() * i32::from(tile[CODE_BYTES + row]);
            *sum += scale * block as f32;
        }
    }
    sums
}
