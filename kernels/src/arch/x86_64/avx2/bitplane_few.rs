//! A few tokens on `bitplane`: nibbles looked up by `vpshufb` in tables of one byte an entry, exact on every input.
//!
//! An entry is the sum of some of 4 activations. Counted from the smallest of the 16, which cancels where the plane of -1 is subtracted from
//! that of +1, it fits into a byte where `Σ |x| <= 255`, as it does for nearly all groups: absmax quantisation scales a token's largest
//! value to 127, and most others are much smaller. A group that is larger is split: its step has two columns of it in its table and is
//! looked up once more, for the other two, at the end of its block. Of inputs of a normal distribution, 2560 values a token, 1 group in 400 is
//! larger; the worst input (all ±127) takes twice the time.
//!
//! The two entries of a row lie side by side, so that `vpmaddubsw` subtracts them and leaves int16: with the extraction of nibbles 9
//! instructions for 128 weights. On 2-bit codes it takes 13; tables of pairs of weights take 11, because entries of different rows lie side by
//! side, and a pair needs as much room for both signs as 4 columns of a plane. Four tokens that share the extraction take 6.75 each, and a
//! block and what it looks up again together. A block ends where a token's `Σ |x|` over it would
//! exceed int16, as a sum could: after 256 columns at worst, and after 256 steps at best, whose numbers are bytes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::bitplane_lookups::{Group, Layout, TOGETHER, Tables};
use super::lookup::add_rows;
use crate::kernel::{PackedMatrix, Prepared, STREAMS};
use crate::layout::bitplane::{SIGNS, Step, TILE_ROWS, apart, quarter};

/// How many bytes ahead of its loads a stream asks for memory, and once more, for the L1 cache. With this and [`quarter`] one token reads 1.04 to
/// 1.12 times as fast from memory on Zen 3 as with one request 1 KB ahead and quarters whole pages apart, and 0.88 to 0.95 times from the L3 cache.
const FAR: usize = 2048;
const NEAR: usize = 256;

/// As [`TernaryKernel::compute`](crate::kernel::TernaryKernel::compute).
#[target_feature(enable = "avx2")]
pub(super) fn compute(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let layout = Layout::of(w.k);
    assert_eq!(x.stride, layout.bytes(1), "the input was prepared for another k");
    let (first, n_tiles) = (rows.start / TILE_ROWS, rows.len() / TILE_ROWS);
    acc.fill(0);
    for tile in 0..quarter(n_tiles) {
        let (at, tiles) = apart(w, first, n_tiles, tile);
        for group in layout.groups(x.m) {
            let acc = &mut acc[group.token * rows.len()..];
            if group.n_tokens == TOGETHER {
                add_group::<TOGETHER>(&layout, x, group, at, tiles, acc, rows.len());
            } else {
                add_group::<1>(&layout, x, group, at, tiles, acc, rows.len());
            }
        }
    }
}

/// Adds the products of a group of tokens with row tiles to `acc`, where tile `at` is a token's 16 sums, and a token's start every `stride`.
#[target_feature(enable = "avx2")]
fn add_group<const T: usize>(
    layout: &Layout,
    x: &Prepared,
    group: Group,
    at: [Option<usize>; STREAMS],
    tiles: [&[Step]; STREAMS],
    acc: &mut [i32],
    stride: usize,
) {
    let (tables, steps) = x.bytes[group.bytes].split_at(layout.lookups * T * size_of::<Tables>());
    let tables: &[[Tables; T]] = tables.as_chunks().0.as_chunks().0;
    let (mut lookup, mut step) = (0, 0);
    for &[next_lookup, next_step] in x.sums[group.sums].as_chunks::<2>().0 {
        let (next_lookup, next_step) = (next_lookup as usize, next_step as usize);
        let (lookups, block) = (lookup..next_lookup, step..next_step);
        let mut here = tiles;
        for tile in &mut here {
            *tile = &tile[block.clone()];
        }
        let sums = look_up(here, &tables[lookups.clone()], &steps[lookups]);
        for t in 0..T {
            let acc = &mut acc[t * stride..][..stride].as_chunks_mut().0;
            for s in 0..STREAMS {
                if let Some(acc) = at[s].and_then(|at| acc.get_mut(at)) {
                    add_rows(acc, sums[t][s]);
                }
            }
        }
        (lookup, step) = (next_lookup, next_step);
        if step == layout.n_steps {
            break;
        }
    }
}

/// The sums of the lookups of a block, int16.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up<const T: usize>(tiles: [&[Step]; STREAMS], tables: &[[Tables; T]], steps: &[u8]) -> [[__m256i; STREAMS]; T] {
    const { assert!(T == 1 || T == TOGETHER) };
    let (n, n_steps) = (tables.len(), tiles[0].len());
    assert!(steps.len() == n && tiles.iter().all(|tile| tile.len() == n_steps), "blocks of one size");
    // Unlike `all`, this is compiled to vectors.
    let last = steps.iter().fold(0, |last, &step| step.max(last));
    assert!(n == 0 || usize::from(last) < n_steps, "a lookup outside its block");
    let mut sums = [[_mm256_setzero_si256(); STREAMS]; T];
    if n == 0 {
        return sums;
    }
    // SAFETY: `n` is not 0; `steps` and `tables` have `n` elements each (asserted; by definition), of as many tokens as the function is
    // for. Every step is less than `n_steps`, the length of all tiles (both asserted). This function runs with AVX2.
    unsafe {
        if T == 1 {
            sums[0] = four_tiles(tiles.map(<[Step]>::as_ptr), tables.as_ptr().cast(), steps);
        } else {
            for s in 0..STREAMS {
                let of_tokens = four_tokens(tiles[s].as_ptr(), tables.as_ptr().cast(), steps);
                for t in 0..T {
                    sums[t][s] = of_tokens[t];
                }
            }
        }
    }
    sums
}

/// The sums of one token and four tiles.
///
/// # Safety
/// The CPU has AVX2; there are tables for each of `steps`, of which there is one at least, and all lie in the tiles.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four_tiles(tiles: [*const Step; STREAMS], tables: *const Tables, steps: &[u8]) -> [__m256i; STREAMS] {
    let mut sums = [_mm256_setzero_si256(); STREAMS];
    // `vpmulhuw` by 2^12 is a shift that takes its operand from memory, and none of the two units of Zen 3 that shuffle.
    #[rustfmt::skip]
    macro_rules! stream {
        ($s:literal) => {
            concat!(
                "vpmulhuw {high}, {sixteenth}, [{tile", $s, "} + {step}]\n",
                "vpand {low}, {nibble}, [{tile", $s, "} + {step}]\n",
                "vpand {high}, {high}, {nibble}\n",
                "vpshufb {low}, {first}, {low}\n",
                "vpshufb {high}, {second}, {high}\n",
                "vpmaddubsw {low}, {low}, {signs}\n",
                "vpmaddubsw {high}, {high}, {signs}\n",
                "vpaddw {sum", $s, "}, {sum", $s, "}, {low}\n",
                "vpaddw {sum", $s, "}, {sum", $s, "}, {high}\n",
                "prefetcht1 [{tile", $s, "} + {step} + {far}]\n",
                "prefetcht0 [{tile", $s, "} + {step} + {near}]",
            )
        };
    }
    // SAFETY: by this function's conditions each load lies in its tile or in the tables. No load needs alignment, nothing is written, and a
    // prefetch may name any address.
    unsafe {
        std::arch::asm!(
            "2:",
            "movzx {step:e}, byte ptr [{steps}]",
            "inc {steps}",
            "shl {step:e}, {step_bits}",
            "vbroadcasti128 {first}, [{tables}]",
            "vbroadcasti128 {second}, [{tables} + 16]",
            "add {tables}, 32",
            stream!(0),
            stream!(1),
            stream!(2),
            stream!(3),
            "dec {n}",
            "jnz 2b",
            step_bits = const size_of::<Step>().ilog2(),
            far = const FAR,
            near = const NEAR,
            steps = inout(reg) steps.as_ptr() => _,
            tables = inout(reg) tables => _,
            n = inout(reg) steps.len() => _,
            step = out(reg) _,
            tile0 = in(reg) tiles[0],
            tile1 = in(reg) tiles[1],
            tile2 = in(reg) tiles[2],
            tile3 = in(reg) tiles[3],
            sum0 = inout(ymm_reg) sums[0],
            sum1 = inout(ymm_reg) sums[1],
            sum2 = inout(ymm_reg) sums[2],
            sum3 = inout(ymm_reg) sums[3],
            nibble = in(ymm_reg) _mm256_set1_epi8(15),
            sixteenth = in(ymm_reg) _mm256_set1_epi16(1 << 12),
            signs = in(ymm_reg) _mm256_set1_epi16(SIGNS),
            first = out(ymm_reg) _,
            second = out(ymm_reg) _,
            low = out(ymm_reg) _,
            high = out(ymm_reg) _,
            options(nostack, readonly),
        );
    }
    sums
}

/// The sums of four tokens and one tile.
///
/// # Safety
/// As for [`four_tiles`], with four tables for each step.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four_tokens(tile: *const Step, tables: *const Tables, steps: &[u8]) -> [__m256i; TOGETHER] {
    let mut sums = [_mm256_setzero_si256(); TOGETHER];
    #[rustfmt::skip]
    macro_rules! token {
        ($t:literal) => {
            concat!(
                "vbroadcasti128 {first}, [{tables} + 32 * ", $t, "]\n",
                "vbroadcasti128 {second}, [{tables} + 32 * ", $t, " + 16]\n",
                "vpshufb {first}, {first}, {low}\n",
                "vpshufb {second}, {second}, {high}\n",
                "vpmaddubsw {first}, {first}, {signs}\n",
                "vpmaddubsw {second}, {second}, {signs}\n",
                "vpaddw {sum", $t, "}, {sum", $t, "}, {first}\n",
                "vpaddw {sum", $t, "}, {sum", $t, "}, {second}",
            )
        };
    }
    // SAFETY: as for four tiles.
    unsafe {
        std::arch::asm!(
            "2:",
            "movzx {step:e}, byte ptr [{steps}]",
            "inc {steps}",
            "shl {step:e}, {step_bits}",
            "vpmulhuw {high}, {sixteenth}, [{tile} + {step}]",
            "vpand {low}, {nibble}, [{tile} + {step}]",
            "vpand {high}, {high}, {nibble}",
            token!(0),
            token!(1),
            token!(2),
            token!(3),
            "prefetcht1 [{tile} + {step} + {far}]",
            "prefetcht0 [{tile} + {step} + {near}]",
            "add {tables}, 128",
            "dec {n}",
            "jnz 2b",
            step_bits = const size_of::<Step>().ilog2(),
            far = const FAR,
            near = const NEAR,
            steps = inout(reg) steps.as_ptr() => _,
            tables = inout(reg) tables => _,
            n = inout(reg) steps.len() => _,
            step = out(reg) _,
            tile = in(reg) tile,
            sum0 = inout(ymm_reg) sums[0],
            sum1 = inout(ymm_reg) sums[1],
            sum2 = inout(ymm_reg) sums[2],
            sum3 = inout(ymm_reg) sums[3],
            nibble = in(ymm_reg) _mm256_set1_epi8(15),
            sixteenth = in(ymm_reg) _mm256_set1_epi16(1 << 12),
            signs = in(ymm_reg) _mm256_set1_epi16(SIGNS),
            first = out(ymm_reg) _,
            second = out(ymm_reg) _,
            low = out(ymm_reg) _,
            high = out(ymm_reg) _,
            options(nostack, readonly),
        );
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::avx2::bitplane_vlut::BitplaneVlut;
    use crate::kernel::TernaryKernel;
    use crate::layout::bitplane::TILE_K;
    use crate::oracle;
    use crate::team::Team;
    use crate::verify::{Random, activations, matrix};

    #[test]
    fn groups_that_fit_into_bytes_and_groups_that_do_not() {
        let Some(kernel) = BitplaneVlut::new() else { return };
        let mut random = Random::new(1);
        // Rows 0 to 3 meet every token's largest sums; 9 tiles leave places of unequal length.
        let n = 8 * TILE_ROWS + 1;
        for k in [1, 3, 4, 7, 8, 31, 32, 33, 36, 255, 257, 1024, 1028, 2085] {
            let w = matrix(n, k, |row, column| match row {
                0 => 1,
                1 => -1,
                2 => [1, -1][column % 2],
                3 => [-1, 1][column % 2],
                _ => random.below(3) as i8 - 1,
            });
            let mut normal = Random::new(2);
            let x = activations(9, k, |token, column| match token {
                0 => 127,
                1 => -127,
                2 => [127, -127][column % 2],
                // 255 fits, 256 does not.
                3 => [64, -64, 64, 63][column % 4],
                4 => [-64, 64][column % 2],
                5 => 0,
                // Σ |x| is 32,767, which a block holds, and one more.
                6 | 7 => [127, token as i8 - 5, 0][usize::from(column >= 258) + usize::from(column >= 259)],
                _ => (19.0 * normal.normal()).clamp(-127.0, 127.0) as i8,
            });
            let packed = kernel.pack(&w);
            let mut prepared = Prepared::default();
            kernel.prepare(&Team::alone(), &x, &mut prepared);
            let n_rows = n.next_multiple_of(TILE_ROWS);
            let mut acc = vec![1; x.m * n_rows];
            kernel.compute(&packed, &prepared, 0..n_rows, &mut acc);
            for (token, (acc, expected)) in acc.chunks(n_rows).zip(oracle::gemm(&w, &x).chunks(n)).enumerate() {
                assert_eq!(acc[..n], *expected, "k {k}, token {token}");
            }
            let (n_steps, layout) = (k.div_ceil(TILE_K), Layout::of(k));
            let mut lookups = |token: usize| {
                let alone = activations(1, k, |_, column| x.row(token)[column]);
                kernel.prepare(&Team::alone(), &alone, &mut prepared);
                let mut acc = vec![1; n_rows];
                kernel.compute(&packed, &prepared, 0..n_rows, &mut acc);
                assert_eq!(acc[..n], oracle::gemm(&w, &alone), "k {k}, token {token} alone");
                let ends = &prepared.sums[layout.group(1, 0).sums].as_chunks::<2>().0;
                let all = ends.iter().find(|[_, step]| *step as usize == n_steps).map(|[n, _]| *n as usize);
                all.expect("the last block ends with the last step")
            };
            // Of a step one group is enough. The last has as many columns as are left: 3 of 127 are too many, and 4 of 64.
            let with = |columns: usize| (k + TILE_K - columns) / TILE_K;
            let expected = [with(3), with(3), with(3), 0, with(4), 0].map(|again| n_steps + again);
            assert_eq!([0, 1, 2, 3, 4, 5].map(&mut lookups), expected, "k {k}: what does not fit is looked up again");
            for token in 6..9 {
                lookups(token);
            }
        }
    }
}
