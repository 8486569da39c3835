//! Many queries by AMX tiles: `tdpbusd` and `tdpbssd` multiply 16 rows of 64 int8 by 16 columns and add to 16 x 16 int32.
//!
//! Rows are queries, or what softmax made of their scores; columns are keys, or dimensions of values. An int16 is an unsigned low byte and 256
//! times a signed high one, whose products have sums of their own: 16 rows by 32 columns fill four tiles. Pairs of rows of a block become the
//! fours that tiles are made of, once for all queries.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::mem::offset_of;

use super::{IntWeights, POSITIONS, ask_for_units, units_of};
use crate::arch::x86_64::amx::Config;
use crate::bytes::{Aligned, AlignedBytes};
use crate::isa::AmxInt8;
use crate::ops::LANES;
use crate::ops::attention::Scores;
use crate::ops::blocks::{Ahead, Blocks, LINE, ask};

/// Rows, and columns, of a tile.
const SIDE: usize = 16;
/// Numbers of a row that are multiplied in a step.
const STEP: usize = LINE;
/// Bytes of a tile.
const TILE: usize = SIDE * LINE;
/// Lines of a panel of values in a block: each is of four positions.
const PANEL_LINES: usize = POSITIONS / 4;

/// See [`Pass`].
#[derive(Default)]
struct Room {
    rows: AlignedBytes,
    row_units: Vec<f32>,
    columns: AlignedBytes,
    column_units: Aligned<f32>,
    sums: AlignedBytes,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// [`scores_i8`](super::scores_i8).
pub fn scores(amx: AmxInt8, queries: &[IntWeights], blocks: Blocks<'_>, height: usize, out: &mut [Scores]) {
    // SAFETY: an `AmxInt8` proves that the CPU has these parts of AVX-512.
    ROOM.with_borrow_mut(|room| unsafe { scores_in(amx, room, queries, blocks, height, out) });
}

/// [`values_i8`](super::values_i8), of an even number of panels.
pub fn values(
    amx: AmxInt8,
    weights: &[IntWeights],
    blocks: Blocks<'_>,
    n_panels: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    // SAFETY: as for the scores.
    ROOM.with_borrow_mut(|room| unsafe { values_in(amx, room, weights, blocks, n_panels, out, out_stride) });
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn scores_in(
    amx: AmxInt8,
    room: &mut Room,
    queries: &[IntWeights],
    blocks: Blocks<'_>,
    height: usize,
    out: &mut [Scores],
) {
    let (n_steps, n_pairs) = ((2 * height).div_ceil(STEP), blocks.all.len().div_ceil(2));
    room.prepare(queries, 2 * height, n_steps, n_pairs);
    for (i, block) in blocks.all.iter().enumerate() {
        let ahead = blocks.ahead(i, 1);
        ask_for_units::<true>(block, ahead);
        room.column_units[i * LANES..][..LANES].copy_from_slice(units_of(block));
        // The last line may be half of units: whatever they are, they are multiplied by zeros.
        let lines = &block.as_chunks::<LINE>().0[..height.div_ceil(2)];
        for (step, lines) in lines.chunks(SIDE).enumerate() {
            let tile = (i / 2 * n_steps + step) * 2 + i % 2;
            lay_out_lines(lines, ahead, &mut room.columns[tile * TILE..]);
        }
    }
    const STRIDE: usize = size_of::<Scores>() / size_of::<f32>();
    room.multiply(amx, queries.len(), n_steps, n_pairs, out.as_flattened_mut(), STRIDE);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn values_in(
    amx: AmxInt8,
    room: &mut Room,
    weights: &[IntWeights],
    blocks: Blocks<'_>,
    n_panels: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let n = blocks.all.len() * POSITIONS;
    let (n_steps, n_pairs) = (n.div_ceil(STEP), n_panels / 2);
    room.prepare(weights, n, n_steps, n_pairs);
    for (i, block) in blocks.all.iter().enumerate() {
        let ahead = blocks.ahead(i, 1);
        ask_for_units::<true>(block, ahead);
        let panels = block.as_chunks::<LINE>().0.chunks_exact(PANEL_LINES).take(n_panels);
        for (panel, lines) in panels.enumerate() {
            let tile = (panel / 2 * n_steps + i * PANEL_LINES / SIDE) * 2 + panel % 2;
            let at = tile * TILE + i * PANEL_LINES % SIDE * LINE;
            lay_out_lines(lines, ahead, &mut room.columns[at..]);
        }
    }
    // Those of positions are in the weights.
    room.column_units.fill(1.0);
    room.multiply(amx, weights.len(), n_steps, n_pairs, out, out_stride);
}

impl Room {
    /// Makes room for columns, and lays out rows of `n` numbers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn prepare(&mut self, rows: &[IntWeights], n: usize, n_steps: usize, n_pairs: usize) {
        self.columns.ensure_len(n_pairs * n_steps * 2 * TILE);
        self.column_units.resize(n_pairs * 2 * SIDE);
        self.sums.ensure_len(2 * 4 * TILE);
        self.row_units.clear();
        self.row_units.extend(rows.iter().map(|row| row.unit));
        self.rows.ensure_len(rows.len().div_ceil(SIDE) * n_steps * 2 * TILE);
        for (rows, out) in rows.chunks(SIDE).zip(self.rows.chunks_exact_mut(n_steps * 2 * TILE)) {
            lay_out_rows(rows, n, out);
        }
    }

    /// The products of rows and columns as floats.
    #[target_feature(enable = "avx512f")]
    fn multiply(
        &mut self,
        _: AmxInt8,
        n_rows: usize,
        n_steps: usize,
        n_pairs: usize,
        out: &mut [f32],
        out_stride: usize,
    ) {
        const WHOLE: (usize, usize) = (SIDE, LINE);
        static CONFIG: Config = Config::new([WHOLE; 8]);
        if n_rows == 0 || n_pairs == 0 {
            return;
        }
        let columns = n_pairs * 2 * SIDE;
        assert!(n_steps > 0 && self.row_units.len() == n_rows && columns <= out_stride, "one step and a row at least");
        assert!(out.len() >= (n_rows - 1) * out_stride + columns, "room for every row");
        assert!(self.rows.len() >= n_rows.div_ceil(SIDE) * n_steps * 2 * TILE && self.sums.len() >= 2 * 4 * TILE);
        assert!(self.columns.len() >= n_pairs * n_steps * 2 * TILE && self.column_units.len() >= columns);
        // SAFETY: `AmxInt8` proves that there are tiles, and there are as many of all as asserted.
        unsafe {
            multiply(&mut Pass {
                config: &CONFIG,
                rows: self.rows.as_ptr(),
                row_units: self.row_units.as_ptr(),
                n_rows,
                columns: self.columns.as_ptr(),
                column_units: self.column_units.as_ptr(),
                n_pairs,
                pairs_left: n_pairs,
                n_steps,
                out: out.as_mut_ptr(),
                out_stride: out_stride * size_of::<f32>(),
                sums: self.sums.as_mut_ptr(),
            });
        }
    }
}

/// Lays out lines of a block, one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn lay_out_lines(lines: &[[u8; LINE]], ahead: Ahead, out: &mut [u8]) {
    for (line, out) in lines.iter().zip(out.as_chunks_mut().0) {
        ask::<true, _>(line, ahead);
        *out = fours(line);
    }
}

/// Two pairs of rows, one after the other, as fours.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fours(line: &[u8; LINE]) -> [u8; LINE] {
    static ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: the arrays are as long as registers.
    unsafe {
        let (order, line) = (_mm512_loadu_si512(ORDER.as_ptr().cast()), _mm512_loadu_si512(line.as_ptr().cast()));
        std::mem::transmute::<__m512i, [u8; LINE]>(_mm512_permutexvar_epi16(order, line))
    }
}

/// Lays out the first `n` numbers of up to 16 rows, and zeros behind them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn lay_out_rows(rows: &[IntWeights], n: usize, out: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        let numbers = &row.pairs.as_flattened()[..n];
        for (step, tiles) in out.chunks_exact_mut(2 * TILE).enumerate() {
            let (low, high) = tiles.split_at_mut(TILE);
            let low = low[r * LINE..][..LINE].as_chunks_mut::<32>().0;
            let high = high[r * LINE..][..LINE].as_chunks_mut::<32>().0;
            for half in 0..2 {
                let numbers = numbers.get(step * STEP + half * 32..).unwrap_or_default();
                let mask = if numbers.len() < 32 { (1 << numbers.len()) - 1 } else { !0 };
                // SAFETY: the load touches as many numbers as there are; an array is as long as its register.
                unsafe {
                    let numbers = _mm512_maskz_loadu_epi16(mask, numbers.as_ptr());
                    low[half] = std::mem::transmute::<__m256i, [u8; 32]>(_mm512_cvtepi16_epi8(numbers));
                    let upper = _mm512_srli_epi16::<8>(numbers);
                    high[half] = std::mem::transmute::<__m256i, [u8; 32]>(_mm512_cvtepi16_epi8(upper));
                }
            }
        }
    }
}

/// Rows, columns, and where their products go. Pointers and numbers of rows are not the same afterwards.
#[repr(C)]
struct Pass {
    config: *const Config,
    /// For every 16 rows and every step the tile of low bytes and that of high ones.
    rows: *const u8,
    /// What the numbers of each row count in.
    row_units: *const f32,
    n_rows: usize,
    /// For every 32 columns and every step two tiles.
    columns: *const u8,
    /// What the numbers of each column count in.
    column_units: *const f32,
    /// Times 32 columns.
    n_pairs: usize,
    pairs_left: usize,
    n_steps: usize,
    /// Of the first row.
    out: *mut f32,
    /// Bytes from row to row.
    out_stride: usize,
    /// Two times four tiles.
    sums: *mut u8,
}

/// Text that multiplies 16 rows by the next 32 columns.
macro_rules! products {
    () => {
        concat!(
            "tilezero tmm0\n",
            "tilezero tmm1\n",
            "tilezero tmm2\n",
            "tilezero tmm3\n",
            "mov {a}, [{pass} + {ROWS}]\n",
            "mov {n}, [{pass} + {N_STEPS}]\n",
            "5:\n",
            "tileloadd tmm4, [{a} + {line}]\n",
            "tileloadd tmm6, [{b} + {line}]\n",
            "tdpbusd tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{b} + {line} + 1024]\n",
            "tdpbusd tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{a} + {line} + 1024]\n",
            "tdpbssd tmm2, tmm5, tmm6\n",
            "tdpbssd tmm3, tmm5, tmm7\n",
            "add {a}, 2048\n",
            "add {b}, 2048\n",
            "dec {n}\n",
            "jnz 5b\n",
        )
    };
}

/// Text that stores their sums, and goes on to the other place for those.
macro_rules! keep_sums {
    () => {
        concat!(
            "tilestored [{sums} + {line}], tmm0\n",
            "tilestored [{sums} + {line} + 1024], tmm1\n",
            "tilestored [{sums} + {line} + 2048], tmm2\n",
            "tilestored [{sums} + {line} + 3072], tmm3\n",
            "xchg {sums}, {before}\n",
        )
    };
}

/// Text that makes floats of the sums that were stored before: `row unit · (256 · high + low) · column unit`.
macro_rules! floats {
    () => {
        concat!(
            "mov {n}, [{pass} + {N_ROWS}]\n",
            "mov {to}, 16\n",
            "cmp {n}, {to}\n",
            "cmova {n}, {to}\n",
            "mov {to}, {out}\n",
            "mov {a}, [{pass} + {ROW_UNITS}]\n",
            "mov {from}, {before}\n",
            "vmovups zmm16, [{units}]\n",
            "vmovups zmm17, [{units} + 64]\n",
            "6:\n",
            "vpslld zmm18, [{from} + 2048], 8\n",
            "vpslld zmm19, [{from} + 3072], 8\n",
            "vbroadcastss zmm20, [{a}]\n",
            "vpaddd zmm18, zmm18, [{from}]\n",
            "vpaddd zmm19, zmm19, [{from} + 1024]\n",
            "vcvtdq2ps zmm18, zmm18\n",
            "vcvtdq2ps zmm19, zmm19\n",
            "vmulps zmm18, zmm20, zmm18\n",
            "vmulps zmm19, zmm20, zmm19\n",
            "vmulps zmm18, zmm18, zmm16\n",
            "vmulps zmm19, zmm19, zmm17\n",
            "vmovups [{to}], zmm18\n",
            "vmovups [{to} + 64], zmm19\n",
            "add {a}, 4\n",
            "add {from}, 64\n",
            "add {to}, [{pass} + {OUT_STRIDE}]\n",
            "dec {n}\n",
            "jnz 6b\n",
            "add {units}, 128\n",
            "add {out}, 128\n",
        )
    };
}

/// Multiplies all rows by all columns.
///
/// # Safety
/// The CPU has AMX, and this process may use it. Of rows, columns and steps there is one at least, and the pass says what its pointers point to.
#[target_feature(enable = "avx512f")]
unsafe fn multiply(pass: &mut Pass) {
    // SAFETY: by the contract.
    unsafe {
        asm!(
            "mov {a}, [{pass} + {CONFIG}]",
            "ldtilecfg [{a}]",
            "mov {line:e}, 64",
            // Sixteen rows.
            "2:",
            "mov {b}, [{pass} + {COLUMNS}]",
            "mov {units}, [{pass} + {COLUMN_UNITS}]",
            "mov {out}, [{pass} + {OUT}]",
            "mov {n}, [{pass} + {N_PAIRS}]",
            "mov [{pass} + {PAIRS_LEFT}], {n}",
            products!(),
            keep_sums!(),
            "dec qword ptr [{pass} + {PAIRS_LEFT}]",
            "jz 4f",
            // Floats are made while tiles are multiplied.
            "3:",
            products!(),
            floats!(),
            keep_sums!(),
            "dec qword ptr [{pass} + {PAIRS_LEFT}]",
            "jnz 3b",
            "4:",
            floats!(),
            "mov {n}, [{pass} + {N_STEPS}]",
            "shl {n}, 11",
            "add [{pass} + {ROWS}], {n}",
            "add qword ptr [{pass} + {ROW_UNITS}], 64",
            "mov {n}, [{pass} + {OUT_STRIDE}]",
            "shl {n}, 4",
            "add [{pass} + {OUT}], {n}",
            "sub qword ptr [{pass} + {N_ROWS}], 16",
            "ja 2b",
            "tilerelease",
            pass = in(reg) pass,
            a = out(reg) _,
            b = out(reg) _,
            n = out(reg) _,
            units = out(reg) _,
            sums = inout(reg) pass.sums => _,
            before = inout(reg) pass.sums.wrapping_add(4 * TILE) => _,
            from = out(reg) _,
            to = out(reg) _,
            out = out(reg) _,
            line = out(reg) _,
            CONFIG = const offset_of!(Pass, config),
            ROWS = const offset_of!(Pass, rows),
            ROW_UNITS = const offset_of!(Pass, row_units),
            N_ROWS = const offset_of!(Pass, n_rows),
            COLUMNS = const offset_of!(Pass, columns),
            COLUMN_UNITS = const offset_of!(Pass, column_units),
            N_PAIRS = const offset_of!(Pass, n_pairs),
            PAIRS_LEFT = const offset_of!(Pass, pairs_left),
            N_STEPS = const offset_of!(Pass, n_steps),
            OUT = const offset_of!(Pass, out),
            OUT_STRIDE = const offset_of!(Pass, out_stride),
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}
