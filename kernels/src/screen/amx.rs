//! The score of many inputs by tiles, of whole inputs and of rows as bytes (see [`super`]).
//!
//! 32 rows are unpacked and multiplied by the two parts of 16 inputs at a time: four tiles of sums. On a Xeon whose core reads 18 GB/s, 32
//! inputs take 38 ms for 128,256 x 2560, nearly half of it unpacking; without tiles 54. What would keep more in the L1 cache, blocks of
//! 512 columns whose sums go to memory and back, takes as long.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{codes_of_two, scales_of_two};
use super::rows::{GROUP_ROWS, Rows, TILE_BYTES};
use super::{BLOCK, Found, Queries, QueryTiles, Score, TILE_COLUMNS, TILE_INPUTS, finish};
use crate::arch::x86_64::amx::Config;
use crate::arch::x86_64::prefetch;
use crate::isa::{AmxInt8, Token};

/// The function, where the CPU can run it.
pub fn score() -> Option<Score> {
    fn score(rows: &Rows, queries: &Queries, groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
        // SAFETY: this function leaves `super::score` only behind a detected `AmxInt8`.
        unsafe { score_many(rows, queries, groups, least, found) }
    }
    AmxInt8::detect().map(|_| score as Score)
}

/// Groups of rows that are taken at once.
const GROUPS: usize = 4;
/// Their rows: two tiles of 16.
const ROWS: usize = GROUPS * GROUP_ROWS;
/// Lines that are asked for while 64 columns are multiplied, at most.
const ASKED: usize = 4;

/// 4 columns of 32 rows, of which a tile takes 16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Quad([[i8; 64]; 2]);

/// For each of 16 inputs the sums of first parts, and of second ones, with 32 rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([[[i32; ROWS]; 2]; TILE_INPUTS]);

/// # Safety
/// The CPU has AMX, and this process may use it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn score_many(rows: &Rows, queries: &Queries, groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
    let n_inputs = queries.all.len();
    let mut sums = vec![Sums([[[0; ROWS]; 2]; TILE_INPUTS]); n_inputs.div_ceil(TILE_INPUTS)];
    let n_steps = queries.tiles.len() / sums.len();
    assert!(n_steps > 0, "the inputs are not quantised whole");
    // Behind an odd number of blocks, zeros.
    let mut quads = vec![Quad([[0; 64]; 2]); n_steps * TILE_COLUMNS / 4];
    for first in groups.clone().step_by(GROUPS) {
        let n_groups = GROUPS.min(groups.end - first);
        // Behind the last group, that one again.
        let tiles: [_; GROUPS] = std::array::from_fn(|g| rows.group(first + g.min(n_groups - 1)).0);
        // Behind them lie the next: what unpacking leaves of their lines is asked for while tiles are multiplied.
        let mut ahead = tiles[GROUPS - 1].as_ptr_range().end.cast::<u8>();
        let n_blocks = GROUPS * tiles[0].len();
        let (n_lines, turns) = (n_blocks * TILE_BYTES / 64, n_steps * sums.len());
        let asked = (n_lines / turns).min(ASKED);
        let n_lines = (n_lines - asked * turns).div_ceil(n_blocks / 2);
        for (half, [a, b]) in tiles.as_chunks().0.iter().enumerate() {
            for ((a, b), quads) in a.iter().zip(*b).zip(quads.as_chunks_mut().0) {
                unpack(a, b, half, quads);
                for _ in 0..n_lines {
                    prefetch::<_MM_HINT_T1>(ahead);
                    ahead = ahead.wrapping_add(64);
                }
            }
        }
        // SAFETY: the CPU has AMX, as this function's caller knows. There are 16 quads for every step, of which there is one at least (asserted),
        // and a pair of tiles for every step of each of `sums`, by the division.
        unsafe { multiply(&quads, n_steps, &queries.tiles, &mut sums, ahead, asked) };
        for group in first..first + n_groups {
            let factors = rows.group(group).1.of_bytes();
            for ((i, query), least) in queries.all.iter().enumerate().zip(&mut *least) {
                let [first_parts, second_parts] = &sums[i / TILE_INPUTS].0[i % TILE_INPUTS];
                let of_group = |sums: &[i32; ROWS]| sums.as_chunks().0[group - first];
                let of_rows = query.of_parts(&of_group(first_parts), &of_group(second_parts));
                finish(rows, group, &factors, (i, query), &of_rows, least, found);
            }
        }
    }
}

/// Puts a block of two groups, as bytes, in its half of the quads.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn unpack(a: &[u8; TILE_BYTES], b: &[u8; TILE_BYTES], half: usize, quads: &mut [Quad; BLOCK / 4]) {
    let scales = scales_of_two(a, b);
    // Four times the scale, for both halves of a row's dword: with 256 times a code, `vpmulhrsw` gives what `rows::byte` does.
    let scales = _mm512_or_si512(_mm512_slli_epi32::<2>(scales), _mm512_slli_epi32::<18>(scales));
    // Of the upper byte of every 16 bits.
    let of = |codes| {
        let codes = _mm512_and_si512(codes, _mm512_set1_epi16(31 << 8));
        _mm512_mulhrs_epi16(_mm512_sub_epi16(codes, _mm512_set1_epi16(16 << 8)), scales)
    };
    for (codes, quad) in codes_of_two(a, b).into_iter().zip(quads) {
        let (even, odd) = (of(_mm512_slli_epi16::<8>(codes)), of(codes));
        // Bits of the first where the third is set, of the second elsewhere.
        let mask = _mm512_set1_epi16(255);
        let bytes = _mm512_ternarylogic_epi32::<0b1110_0100>(even, _mm512_slli_epi16::<8>(odd), mask);
        // SAFETY: the array holds the 64 bytes that are written; the store needs no alignment.
        unsafe { _mm512_storeu_si512(quad.0[half].as_mut_ptr().cast(), bytes) };
    }
}

/// The sums of products of both parts of all inputs with 32 rows. Meanwhile lines from `ahead` on are asked for, `asked` in
/// a step.
///
/// # Safety
/// The CPU has AMX, and this process may use it. There are `n_steps`, at least one, times 16 `quads`, and `n_steps` pairs of `inputs` for each of
/// `sums`, of which there is one at least.
unsafe fn multiply(
    quads: &[Quad],
    n_steps: usize,
    inputs: &[QueryTiles],
    sums: &mut [Sums],
    ahead: *const u8,
    asked: usize,
) {
    const { assert!(ASKED == 4, "as the text of the instructions has it") };
    static CONFIG: Config = Config::new([(16, 64); 8]);
    // SAFETY: by the contract; requests may go anywhere.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "mov {quad}, {quads}",
            "mov {n}, {n_steps}",
            "3:",
            "tileloadd tmm6, [{quad} + 2*{line}]",
            "tileloadd tmm4, [{inputs} + {line}]",
            "tileloadd tmm7, [{quad} + 2*{line} + 64]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{inputs} + {line} + 1024]",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + 64]",
            "prefetcht1 [{ahead} + 128]",
            "prefetcht1 [{ahead} + 192]",
            "add {ahead}, {asked}",
            "add {inputs}, 2048",
            "add {quad}, 16*128",
            "dec {n}",
            "jnz 3b",
            "tilestored [{sums} + 4*{line}], tmm0",
            "tilestored [{sums} + 4*{line} + 64], tmm1",
            "tilestored [{sums} + 4*{line} + 128], tmm2",
            "tilestored [{sums} + 4*{line} + 192], tmm3",
            "add {sums}, 4096",
            "cmp {sums}, {end}",
            "jne 2b",
            "tilerelease",
            config = in(reg) &raw const CONFIG,
            quads = in(reg) quads.as_ptr(),
            quad = out(reg) _,
            n_steps = in(reg) n_steps,
            n = out(reg) _,
            inputs = inout(reg) inputs.as_ptr() => _,
            sums = inout(reg) sums.as_mut_ptr() => _,
            end = in(reg) sums.as_ptr_range().end,
            ahead = inout(reg) ahead => _,
            asked = in(reg) 64 * asked,
            line = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}
