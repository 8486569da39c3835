//! The score of many inputs by tiles, of whole inputs and of rows as bytes (see [`super`]).
//!
//! 16 rows are multiplied by the two parts of 32 inputs from the first column to the last, in four tiles of sums. While `tdpbssd` multiplies 64
//! columns, vector units, which have nothing else to do, unpack those that are two steps ahead. On an Emerald Rapids 32 inputs of 128,256 x 2560
//! take 30 ms, of which 26 are here; only unpacking takes 16, which is what its memory takes in one stream, only multiplying 14.

use std::arch::asm;
use std::mem::offset_of;
use std::ops::Range;

use super::rows::{GROUP_ROWS, Rows, TILE_BYTES};
use super::{CHUNK, Found, Queries, QueryTiles, Score, TILE_COLUMNS, TILE_INPUTS, finish};
use crate::arch::x86_64::amx::Config;
use crate::isa::{AmxInt8, Token};

/// The function, where the CPU can run it.
pub fn score() -> Option<Score> {
    fn score(rows: &Rows, queries: &Queries, groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
        // SAFETY: this function leaves `super::score` only behind a detected `AmxInt8`.
        unsafe { score_many(rows, queries, groups, least, found) }
    }
    AmxInt8::detect().map(|_| score as Score)
}

/// Groups of rows of a tile.
const GROUPS: usize = 2;
/// Tiles of rows that are multiplied in one go: configuring tiles costs some 100 ns.
const ROW_TILES: usize = CHUNK / GROUPS;

/// For each of 16 inputs the sums with 16 rows: of first parts, and of second ones.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([[[i32; GROUPS * GROUP_ROWS]; TILE_INPUTS]; 2]);

/// Of two tiles of inputs.
type SumsOfTwo = [Sums; 2];

/// # Safety
/// The CPU has AMX, which this process may use, and AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn score_many(rows: &Rows, queries: &Queries, groups: Range<usize>, least: &mut [f32], found: &mut Found<'_>) {
    let n_inputs = queries.all.len();
    let n_steps = queries.tiles.len() / n_inputs.div_ceil(TILE_INPUTS);
    assert!(n_steps > 0, "the inputs are not quantised whole");
    let zero = [Sums([[[0; _]; _]; 2]); 2];
    let mut sums = vec![[zero; ROW_TILES]; n_inputs.div_ceil(2 * TILE_INPUTS)];
    for first in groups.clone().step_by(CHUNK) {
        let of_chunk = first..groups.end.min(first + CHUNK);
        for ((i, inputs), sums) in queries.tiles.chunks(2 * n_steps).enumerate().zip(&mut sums) {
            let n_inputs = n_inputs - i * 2 * TILE_INPUTS;
            // SAFETY: by this function's contract.
            unsafe { multiply(rows, of_chunk.clone(), n_inputs.min(2 * TILE_INPUTS), inputs, n_steps, sums) };
        }
        for group in of_chunk {
            let factors = rows.group(group).1.of_bytes();
            let (row_tile, of_tile) = ((group - first) / GROUPS, (group - first) % GROUPS);
            for ((i, query), least) in queries.all.iter().enumerate().zip(&mut *least) {
                let Sums(parts) = &sums[i / (2 * TILE_INPUTS)][row_tile][i / TILE_INPUTS % 2];
                let [first, second] = parts.each_ref().map(|part| &part[i % TILE_INPUTS].as_chunks().0[of_tile]);
                finish(rows, group, &factors, (i, query), &query.of_parts(first, second), least, found);
            }
        }
    }
}

/// What is to be multiplied. The asm of [`multiply`] reads and counts here.
#[repr(C)]
struct Job {
    config: Config,
    /// The tiles of 16 inputs, and of 16 others or the same.
    inputs: [*const QueryTiles; 2],
    /// Of 64 columns.
    n_steps: usize,
    /// Row tiles that are left.
    n_row_tiles: usize,
    /// The first group of the row tile that is unpacked.
    group: *const u8,
    /// Bytes from group to group.
    stride: usize,
    /// The last group of the matrix, and its last tile of 32 columns: in the place of one behind comes this one.
    last_group: *const u8,
    last_tile: *const u8,
    /// The highest bits of a code that is in two vectors, the middle one of that in three, and in every 16 bits: a code in the upper byte, 16
    /// there, the lower byte.
    masks: [u32; 5],
}

/// The sums of products of both parts of up to 32 inputs with the rows of a chunk of groups.
///
/// # Safety
/// The CPU has AMX, which this process may use, and AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn multiply(
    rows: &Rows,
    groups: Range<usize>,
    n_inputs: usize,
    inputs: &[QueryTiles],
    n_steps: usize,
    sums: &mut [SumsOfTwo; ROW_TILES],
) {
    let n_row_tiles = groups.len().div_ceil(GROUPS);
    let n_input_tiles = n_inputs.div_ceil(TILE_INPUTS);
    assert!((1..=ROW_TILES).contains(&n_row_tiles) && (1..=2).contains(&n_input_tiles));
    assert!(n_steps > 0 && inputs.len() == n_input_tiles * n_steps, "an input has {n_steps} steps");
    let (last, n_tiles) = (rows.n_groups() - 1, rows.group(groups.start).0.len());
    assert_eq!(n_tiles.div_ceil(2), n_steps, "rows have as many columns as inputs");
    let group = |group: usize| rows.packed()[group * rows.group_bytes()..].as_ptr();
    // Where a second tile of inputs is missing one of them takes its place, of which nothing is kept.
    let (a, b) = (n_inputs.min(TILE_INPUTS), n_inputs.saturating_sub(TILE_INPUTS).max(1));
    let mut job = Job {
        config: Config::new([a, a, b, b, a, a, b, 16].map(|rows| (rows, 64))),
        inputs: [inputs.as_ptr(), inputs[(n_input_tiles - 1) * n_steps..].as_ptr()],
        n_steps,
        n_row_tiles,
        group: group(groups.start),
        stride: rows.group_bytes(),
        last_group: group(last),
        last_tile: rows.packed()[last * rows.group_bytes() + (n_tiles - 1) * TILE_BYTES..].as_ptr(),
        masks: [0x1c1c_1c1c, 0x0202_0202, 0x1f00_1f00, 0x1000_1000, 0x00ff_00ff],
    };
    let mut ring = Ring([[[0; 64]; TILE_COLUMNS / 4]; STEPS]);
    let ring = ring.0.as_mut_ptr();
    debug_assert!(ring.addr().is_multiple_of(align_of::<Ring>()), "the asm finds the end of the ring by its address");
    // SAFETY: by the contract. There is a tile of each part for every step of the inputs, and room for the sums of as many row tiles as there are
    // (asserted). What is unpacked begins nowhere behind the last tile of 32 columns of the matrix, by the comparisons with it; behind an odd
    // number of them a step takes whatever lies there, which meets zeros. Requests may go anywhere.
    unsafe {
        asm!(
            "ldtilecfg [{job}]",
            "vpbroadcastd zmm16, [{job} + {MASKS}]",
            "vpbroadcastd zmm17, [{job} + {MASKS} + 4]",
            "vpbroadcastd zmm18, [{job} + {MASKS} + 8]",
            "vpbroadcastd zmm19, [{job} + {MASKS} + 12]",
            "vpbroadcastd zmm20, [{job} + {MASKS} + 16]",
            "mov {line:e}, 64",
            // The first two steps; where there is one, that of the next row tile too.
            "xor {left:e}, {left:e}",
            "mov {n:e}, 2",
            "2:",
            next_step!(),
            unpack_block!(0),
            second_block!(),
            unpack_block!(8),
            "add {next}, 1024",
            "dec {n}",
            "jnz 2b",

            "3:",
            "mov {x}, [{job} + {INPUTS}]",
            "mov {x2}, [{job} + {INPUTS} + 8]",
            "mov {n}, [{job} + {N_STEPS}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",

            "4:",
            next_step!(),
            "tileloadd tmm7, [{step} + {line}]",
            "tileloadd tmm4, [{x} + {line}]",
            "tdpbssd tmm0, tmm4, tmm7",
            "tileloadd tmm5, [{x} + {line} + 1024]",
            "tdpbssd tmm1, tmm5, tmm7",
            unpack_block!(0),
            second_block!(),
            "tileloadd tmm6, [{x2} + {line}]",
            "tdpbssd tmm2, tmm6, tmm7",
            "tileloadd tmm6, [{x2} + {line} + 1024]",
            "tdpbssd tmm3, tmm6, tmm7",
            unpack_block!(8),
            "add {x}, 2048",
            "add {x2}, 2048",
            // The ring lies at a multiple of twice its 4096 bytes.
            "add {step}, 1024",
            "btr {step}, 12",
            "add {next}, 1024",
            "btr {next}, 12",
            "dec {n}",
            "jnz 4b",

            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            "add {sums}, 4096",
            "dec qword ptr [{job} + {N_ROW_TILES}]",
            "jnz 3b",
            "tilerelease",
            job = in(reg) &raw mut job,
            step = inout(reg) ring => _,
            next = inout(reg) ring => _,
            sums = inout(reg) sums.as_mut_ptr() => _,
            a = inout(reg) 0usize => _,
            b = inout(reg) 0usize => _,
            ahead = in(reg) GROUPS * job.stride,
            left = out(reg) _,
            n = out(reg) _,
            x = out(reg) _,
            x2 = out(reg) _,
            line = out(reg) _,
            INPUTS = const offset_of!(Job, inputs),
            N_STEPS = const offset_of!(Job, n_steps),
            N_ROW_TILES = const offset_of!(Job, n_row_tiles),
            GROUP = const offset_of!(Job, group),
            STRIDE = const offset_of!(Job, stride),
            LAST_GROUP = const offset_of!(Job, last_group),
            LAST_TILE = const offset_of!(Job, last_tile),
            MASKS = const offset_of!(Job, masks),
            TILE = const TILE_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            out("tmm7") _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _,
            out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm16") _, out("zmm17") _,
            out("zmm18") _, out("zmm19") _, out("zmm20") _,
            options(nostack),
        );
    }
}

/// Steps that are unpacked before the first of them is overwritten. What was stored less than two steps before is waited for.
const STEPS: usize = 4;

/// 4 columns of 16 rows, 16 times for each step.
#[repr(C, align(8192))]
struct Ring([[[i8; 64]; TILE_COLUMNS / 4]; STEPS]);

/// Text that leaves in `a` and `b` the tiles of two groups that begin the next step, those of the next row tile behind the last.
macro_rules! next_step {
    () => {
        concat!(
            "add {a}, {TILE}\n",
            "add {b}, {TILE}\n",
            "test {left}, {left}\n",
            "jnz 5f\n",
            "mov {a}, [{job} + {GROUP}]\n",
            "mov {b}, {a}\n",
            "add {b}, [{job} + {STRIDE}]\n",
            "mov {left}, {b}\n",
            "add {left}, [{job} + {STRIDE}]\n",
            "mov [{job} + {GROUP}], {left}\n",
            "cmp {a}, [{job} + {LAST_GROUP}]\n",
            "cmova {a}, [{job} + {LAST_GROUP}]\n",
            "cmp {b}, [{job} + {LAST_GROUP}]\n",
            "cmova {b}, [{job} + {LAST_GROUP}]\n",
            "mov {left}, [{job} + {N_STEPS}]\n",
            "5:\n",
            "dec {left}\n",
        )
    };
}
use next_step;

/// Text that goes on to the second half of a step.
macro_rules! second_block {
    () => {
        concat!(
            "add {a}, {TILE}\n",
            "cmp {a}, [{job} + {LAST_TILE}]\n",
            "cmova {a}, [{job} + {LAST_TILE}]\n",
            "add {b}, {TILE}\n",
            "cmp {b}, [{job} + {LAST_TILE}]\n",
            "cmova {b}, [{job} + {LAST_TILE}]\n",
        )
    };
}
use second_block;

/// Text that unpacks 32 columns of two groups, as bytes, to quads `$first` and those behind it of the step at `next`. As `codes_of_two` for AVX-512
/// alone.
macro_rules! unpack_block {
    ($first:literal) => {
        concat!(
            load_two!(0, "0"),
            load_two!(1, "32"),
            load_two!(2, "64"),
            load_two!(3, "96"),
            load_two!(4, "128"),
            // Four times the scale, for both halves of a row's dword: with 256 times a code, `vpmulhrsw` gives what `rows::byte` does.
            "vmovq xmm8, [{a} + 160]\n",
            "vpinsrq xmm8, xmm8, [{b} + 160], 1\n",
            "vpmovzxbd zmm8, xmm8\n",
            "vpslld zmm9, zmm8, 2\n",
            "vpslld zmm8, zmm8, 18\n",
            "vpord zmm8, zmm8, zmm9\n",
            // Bits of the first where the third is set, of the second elsewhere.
            "vpsrlw zmm5, zmm0, 3\n",
            "vpsrlw zmm9, zmm2, 6\n",
            "vpternlogd zmm5, zmm9, zmm16, 0xE4\n",
            "vpsrlw zmm6, zmm1, 3\n",
            "vpsrlw zmm9, zmm3, 6\n",
            "vpternlogd zmm6, zmm9, zmm16, 0xE4\n",
            "vpsrlw zmm7, zmm3, 4\n",
            "vpsrlw zmm9, zmm2, 5\n",
            "vpternlogd zmm7, zmm9, zmm17, 0xE4\n",
            "vpsrlw zmm9, zmm4, 3\n",
            "vpternlogd zmm7, zmm9, zmm16, 0xD8\n",
            store_bytes!(0, $first),
            store_bytes!(1, $first),
            store_bytes!(2, $first),
            store_bytes!(3, $first),
            store_bytes!(4, $first),
            store_bytes!(5, $first),
            store_bytes!(6, $first),
            store_bytes!(7, $first),
        )
    };
}
use unpack_block;

/// Text that loads a vector of two groups, and asks for what lies in its place in the next row tile.
macro_rules! load_two {
    ($vector:literal, $at:literal) => {
        concat!(
            "vmovdqu ymm",
            $vector,
            ", [{a} + ",
            $at,
            "]\n",
            "vinserti64x4 zmm",
            $vector,
            ", zmm",
            $vector,
            ", [{b} + ",
            $at,
            "], 1\n",
            "prefetcht1 [{a} + {ahead} + ",
            $at,
            "]\n",
            "prefetcht1 [{b} + {ahead} + ",
            $at,
            "]\n",
        )
    };
}
use load_two;

/// Text that makes bytes of a quad's codes.
macro_rules! store_bytes {
    ($quad:literal, $first:literal) => {
        concat!(
            "vpsllw zmm10, zmm",
            $quad,
            ", 8\n",
            "vpandd zmm10, zmm10, zmm18\n",
            "vpandd zmm11, zmm",
            $quad,
            ", zmm18\n",
            "vpsubw zmm10, zmm10, zmm19\n",
            "vpsubw zmm11, zmm11, zmm19\n",
            "vpmulhrsw zmm10, zmm10, zmm8\n",
            "vpmulhrsw zmm11, zmm11, zmm8\n",
            "vpsllw zmm11, zmm11, 8\n",
            "vpternlogd zmm10, zmm11, zmm20, 0xE4\n",
            "vmovdqa64 [{next} + 64*(",
            $first,
            " + ",
            $quad,
            ")], zmm10\n",
        )
    };
}
use store_bytes;
