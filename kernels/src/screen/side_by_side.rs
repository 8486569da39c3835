//! One query at several places of the rows at once.

use std::ops::Range;

use super::rows::{GROUP_ROWS, Rows, TILE_BYTES};
use super::{Found, Query, finish};
use crate::kernel::STREAMS;

/// The tiles of a group.
pub type Tiles<'a> = &'a [[u8; TILE_BYTES]];

/// Scores groups for one query: [`STREAMS`] at a time by `several`, as far apart as the range allows, so that each stream goes on where it has
/// asked for memory, and what is left by `alone`. Inlined where more CPU features are enabled. On Zen 3 four groups next to each other took 1.14
/// times as long; on Emerald Rapids one after the other, with as many requests as [`ask_ahead`](crate::arch::x86_64::ask_ahead) makes, 1.2 to 1.3.
#[inline(always)]
pub fn score_side_by_side<'a>(
    rows: &'a Rows,
    query: &Query,
    groups: Range<usize>,
    least: &mut f32,
    found: &mut Found<'_>,
    several: impl Fn([Tiles<'a>; STREAMS]) -> [[f32; GROUP_ROWS]; STREAMS],
    alone: impl Fn(Tiles<'a>) -> [f32; GROUP_ROWS],
) {
    let spacing = groups.len() / STREAMS;
    for first in groups.start..groups.start + spacing {
        let places: [usize; STREAMS] = std::array::from_fn(|s| first + s * spacing);
        for (group, sums) in places.into_iter().zip(several(places.map(|group| rows.group(group).0))) {
            finish(rows, group, &rows.group(group).1, (0, query), &sums, least, found);
        }
    }
    for group in groups.start + STREAMS * spacing..groups.end {
        let (tiles, factors) = rows.group(group);
        finish(rows, group, &factors, (0, query), &alone(tiles), least, found);
    }
}
