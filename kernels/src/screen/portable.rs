//! The score on any CPU: what the vector code is tested against.

use std::ops::Range;

use super::rows::{CODE_BYTES, GROUP_ROWS, Rows, TILE_BYTES, code};
use super::{Found, Queries, Query, QueryBlock, finish};
#[cfg(test)]
use super::{TILE_COLUMNS, TILE_INPUTS, rows::byte};

/// See [`super::Score`].
pub fn score(rows: &Rows, queries: &Queries, groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
    for group in groups {
        let (tiles, factors) = rows.group(group);
        for (query, least) in queries.all.iter().enumerate().zip(&mut *least) {
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

/// What `amx::score` does.
#[cfg(test)]
pub fn score_whole(rows: &Rows, queries: &Queries, groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
    let per_input = queries.tiles.len() / queries.all.len().div_ceil(TILE_INPUTS);
    for group in groups {
        let (tiles, factors) = rows.group(group);
        let factors = factors.of_bytes();
        for (i, (query, least)) in queries.all.iter().zip(&mut *least).enumerate() {
            let of_input = &queries.tiles[i / TILE_INPUTS * per_input..][..per_input];
            let mut sums = [[0i32; GROUP_ROWS]; 2];
            for column in 0..32 * tiles.len() {
                let tile = &tiles[column / 32];
                for row in 0..GROUP_ROWS {
                    let code = code(tile, column % 32 / 4, 4 * row + column % 4);
                    let weight = byte(i32::from(code) - 16, i32::from(tile[CODE_BYTES + row]));
                    for part in 0..2 {
                        sums[part][row] += weight
                            * i32::from(
                                of_input[column / TILE_COLUMNS].0[part][i % TILE_INPUTS][column % TILE_COLUMNS],
                            );
                    }
                }
            }
            finish(rows, group, &factors, (i, query), &query.of_parts(&sums[0], &sums[1]), least, found);
        }
    }
}
