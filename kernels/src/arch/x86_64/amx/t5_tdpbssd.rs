//! `amx-t5-tdpbssd`: three trits in five bits, looked up into tiles of trits, which `tdpbssd` multiplies by tiles of activations. Tiles
//! of sums are int32, so nothing can overflow, and nothing is to be corrected: trits and activations are both signed.
//!
//! 32 rows are multiplied by 32 tokens from the first column to the last: two tiles of 16 tokens by two of 16 rows keep four tiles of sums,
//! which go to memory once. `tdpbssd` keeps a unit of its own busy for 16 cycles, and the vector units have nothing else to do: while 192 columns
//! are multiplied they unpack the next 192 to the L1 cache, for every 32 tokens anew. That costs little, while sums that wait in memory until
//! more tokens have met the same trits cost a quarter of the time.
//!
//! On an Emerald Rapids whose core does 2960 G multiply-adds a second this way, 2560 x 2560 by 128 tokens reaches 58 % of it from the cache. A
//! loop that only loads a tile for each product reaches 80, with activations from the L2 cache 73, and 66 with the unpacking beside it, since
//! tiles go through the ports of vectors too: a load takes some nine turns there, a product six.
//!
//! Instructions on tiles are asm because their intrinsics are not stable. The compiler does not know of tiles, so they never outlive one
//! block of asm: it takes a list of passes, from the configuration of the tiles to their release.

use std::arch::asm;
use std::mem::offset_of;
use std::ops::Range;
use std::ptr;

use super::Config;
use crate::activation::QuantizedActivations;
use crate::arch::x86_64::avx512vbmi::t5_dpbusd::T5Dpbusd;
use crate::isa::{AmxInt8, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TILE_COLUMNS, TILE_TOKENS, TernaryKernel};
use crate::layout::interleaved::{PLANE_BYTES, TILE_ROWS};
use crate::layout::t5;
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// The kernel.
pub struct T5Tdpbssd {
    /// For less than [`TILES_FROM`] tokens.
    few: T5Dpbusd,
    #[allow(dead_code, reason = "the proof of support")]
    proof: AmxInt8,
}

/// From this many tokens on tiles are worth unpacking for: three take 0.9 of the time by them, two as long, and one is read from four places without.
const TILES_FROM: usize = 3;

impl T5Tdpbssd {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "amx-t5-tdpbssd",
        summary: "3 trits in 5 bits, vpermb look-up to tiles, tdpbssd, 32 tokens by 32 rows; 1 and 2 tokens by vpdpbusd",
        features: AmxInt8::FEATURES,
        layout: "t5",
        bits_per_weight: 5.0 / 3.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "own",
    };

    /// The kernel, where the CPU has the instructions.
    pub fn new() -> Option<Self> {
        Some(Self { few: T5Dpbusd::new()?, proof: AmxInt8::detect()? })
    }
}

impl TernaryKernel for T5Tdpbssd {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        t5::pack(w)
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        if x.m < TILES_FROM {
            self.few.prepare(team, x, out);
        } else {
            out.fill_in_tiles(team, x);
        }
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        if x.m < TILES_FROM {
            return self.few.compute(w, x, rows, acc);
        }
        assert_eq!(x.stride, w.k.next_multiple_of(TILE_COLUMNS), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        let aligned = rows.start.is_multiple_of(TILE_ROWS) && rows.end.is_multiple_of(TILE_ROWS);
        assert!(aligned, "{rows:?} cuts a tile");
        if acc.is_empty() || w.k == 0 {
            return acc.fill(0);
        }
        // SAFETY: `self` holds the token of these features, which only run-time detection hands out.
        unsafe { compute(w, x, rows, acc) };
    }
}

/// A tile as stored: 96 columns of 32 rows.
type Packed = [u8; t5::SHAPE.bytes()];
/// 4 columns of trits for each of 32 rows. A tile register takes 16 of these, half of each.
type Step = [i8; PLANE_BYTES];
/// Activations of a tile register.
type Activations = [i8; TILE_TOKENS * TILE_COLUMNS];

/// Tokens of a pass.
const TOKENS: usize = 2 * TILE_TOKENS;
/// Columns that are unpacked while as many are multiplied: of two packed tiles, which are whole tiles of activations too.
const COLUMNS: usize = 2 * t5::SHAPE.columns;

/// Bytes of activations that stay in the L2 cache, of 2 MB on every CPU with AMX, while row tile after row tile goes by.
const ACTIVATIONS: usize = 1 << 20;

/// Trits that are multiplied, and those that are unpacked meanwhile: 12 KB.
#[repr(C, align(64))]
struct Trits([[Step; COLUMNS / 4]; 2]);

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn compute(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let n_rows = rows.len();
    let packed: &[Packed] = w.data.as_chunks().0;
    let row_tile = w.k.div_ceil(t5::SHAPE.columns);
    let (config, rest) = (config_for(TOKENS), config_for(x.m % TOKENS));
    let together = (ACTIVATIONS / x.stride).max(1).next_multiple_of(TOKENS);
    assert!(rows.end / TILE_ROWS * row_tile <= packed.len(), "the matrix has no {rows:?}");
    let mut passes = Passes::new(packed, row_tile, x.stride / TILE_COLUMNS, n_rows);
    let acc = acc.as_mut_ptr();
    for first in (0..x.m).step_by(together) {
        for (i, tile) in (rows.start / TILE_ROWS..rows.end / TILE_ROWS).enumerate() {
            for token in (first..x.m.min(first + together)).step_by(TOKENS) {
                let group = |token| x.tiles(token / TILE_TOKENS).as_ptr();
                let second = token + TILE_TOKENS;
                let is_whole = token + TOKENS <= x.m;
                // SAFETY: the CPU has AMX by the token that the caller holds. The row tile is one of the matrix (asserted), whose columns are as many
                // as both groups of tokens in `x` have tiles for; its sums are in `acc`, whose length was asserted, for as many tokens as the
                // configuration has. Nothing else touches `acc` before all passes have run.
                unsafe {
                    passes.push(Pass {
                        config: if is_whole { &config } else { &rest },
                        x: [group(token), if second < x.m { group(second) } else { ptr::null() }],
                        packed: packed[tile * row_tile..].as_ptr(),
                        next: ptr::null(),
                        acc: acc.add(token * n_rows + i * TILE_ROWS),
                    });
                }
            }
        }
    }
    // SAFETY: as above.
    unsafe { passes.run() };
}

/// Four tiles of sums, two of activations and two of trits, for so many tokens. Where a second tile of tokens is missing one takes its place, of
/// which nothing is kept.
fn config_for(n_tokens: usize) -> Config {
    let (a, b) = (n_tokens.min(TILE_TOKENS), n_tokens.saturating_sub(TILE_TOKENS).max(1));
    Config::new([a, a, b, b, a, b, 16, 16].map(|rows| (rows, 64)))
}

/// The products of a row tile and up to 32 tokens. [`Passes::run`] reads this.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pass {
    /// The tiles' shapes; null where they are those of the pass before.
    config: *const Config,
    /// Tiles of activations of 16 tokens, one for each step of 64 columns. The second is null where there are no more than 16 tokens.
    x: [*const Activations; 2],
    /// The row tile.
    packed: *const Packed,
    /// That of the pass behind.
    next: *const Packed,
    /// The first token's sum of the first row.
    acc: *mut i32,
}

/// As many passes go by before tiles are released and configured again, which costs some 100 ns.
const MOST: usize = 64;

/// Passes to be done, one after the other, over row tiles of a matrix.
struct Passes<'a> {
    list: [Pass; MOST],
    n: usize,
    /// Of the last of them.
    config: *const Config,
    /// All row tiles.
    packed: &'a [Packed],
    /// Packed tiles of each.
    row_tile: usize,
    /// Steps of 64 columns.
    n_steps: usize,
    /// Sums from one token to the next.
    stride: usize,
}

impl<'a> Passes<'a> {
    fn new(packed: &'a [Packed], row_tile: usize, n_steps: usize, stride: usize) -> Self {
        let nothing = Pass {
            config: ptr::null(),
            x: [ptr::null(); 2],
            packed: ptr::null(),
            next: ptr::null(),
            acc: ptr::null_mut(),
        };
        Self { list: [nothing; MOST], n: 0, config: ptr::null(), packed, row_tile, n_steps, stride }
    }

    /// Adds a pass, after those of a full list are done.
    ///
    /// # Safety
    /// That of [`Self::run`], by which the pointers of `pass` have to be good until then.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    unsafe fn push(&mut self, pass: Pass) {
        if self.n == MOST {
            // SAFETY: by the contract.
            unsafe { self.run() };
        }
        let config = std::mem::replace(&mut self.config, pass.config);
        let config = if config == pass.config { ptr::null() } else { pass.config };
        if let Some(before) = self.list[..self.n].last_mut() {
            before.next = pass.packed;
        }
        // Behind the last nothing follows, and something has to be unpacked.
        self.list[self.n] = Pass { config, next: pass.packed, ..pass };
        self.n += 1;
    }

    /// Does all passes and forgets them.
    ///
    /// # Safety
    /// The CPU has AMX, and this process may use it. Of every pass that was pushed since the last run: `packed` is the first tile of a row tile of
    /// `self.packed`, `config` is for as many tokens as there are tiles in `x` and sums in `acc`, `self.stride` apart; of each of these tiles
    /// there is one for every step of 64 columns, at least one, and `self.row_tile` is for as many columns as they are, or for up to 63 fewer.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    unsafe fn run(&mut self) {
        let Range { start, end } = self.list[..self.n].as_ptr_range();
        let Some(last) = self.packed.last().filter(|_| self.n > 0) else { return };
        let mut trits = Trits([[[0; PLANE_BYTES]; COLUMNS / 4]; 2]);
        let [trits, slot] = &mut trits.0;
        let common = Common {
            n_pairs: self.n_steps.div_ceil(3),
            n_cut: usize::from(!self.n_steps.is_multiple_of(3)),
            n_left: self.n_steps % 3,
            stride: self.stride * size_of::<i32>(),
            last,
        };
        // SAFETY: by the contract, and because no pass has fewer tokens than its tiles have rows. What lies in the place of a second packed tile
        // that a row tile has not is another one of the matrix, and its trits meet zeros. Prefetches may go anywhere.
        unsafe {
            asm!(
                "vmovdqa64 zmm16, [{a}]",
                "vmovdqa64 zmm17, [{a} + 64]",
                "vmovdqa64 zmm18, [{a} + 128]",
                "vmovdqa64 zmm19, [{a} + 192]",
                "mov {line:e}, 64",
                "mov {packed}, [{pass} + {PACKED}]",
                find_second!(),
                unpack_pair!(),
                "xchg {trits}, {slot}",

                "2:",
                "mov {a}, [{pass} + {CONFIG}]",
                "test {a}, {a}",
                "jz 3f",
                "ldtilecfg [{a}]",
                "3:",
                "mov {x}, [{pass} + {X}]",
                "mov {x2}, [{pass} + {X} + 8]",
                "test {x2}, {x2}",
                "cmovz {x2}, {x}",
                "mov {packed}, [{pass} + {PACKED}]",
                "mov {n}, [{common} + {N_PAIRS}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",

                // Pairs of three steps.
                "4:",
                "cmp {n}, [{common} + {N_CUT}]",
                "je 5f",
                // Behind the last pair of the row tile comes the first that the next pass wants.
                "add {packed}, 2*{TILE}",
                "dec {n}",
                "cmovz {packed}, [{pass} + {NEXT}]",
                find_second!(),
                three_steps!(),
                "add {x}, 3*16*64",
                "add {x2}, 3*16*64",
                "xchg {trits}, {slot}",
                "jmp 4b",

                // A pair of which only one or two steps are left.
                "5:",
                "test {n}, {n}",
                "jz 8f",
                "mov {packed}, [{pass} + {NEXT}]",
                find_second!(),
                "cmp qword ptr [{common} + {N_LEFT}], 1",
                "jne 6f",
                one_step!(),
                "jmp 7f",
                "6:",
                two_steps!(),
                "7:",
                "xchg {trits}, {slot}",

                "8:",
                "mov {n}, [{common} + {STRIDE}]",
                "mov {a}, [{pass} + {ACC}]",
                "tilestored [{a} + {n}], tmm0",
                "tilestored [{a} + {n} + 64], tmm1",
                "cmp qword ptr [{pass} + {X} + 8], 0",
                "je 9f",
                "mov {second}, {n}",
                "shl {second}, 4",
                "add {a}, {second}",
                "tilestored [{a} + {n}], tmm2",
                "tilestored [{a} + {n} + 64], tmm3",
                "9:",
                "add {pass}, {PASS_BYTES}",
                "cmp {pass}, {end}",
                "jne 2b",
                "tilerelease",
                a = inout(reg) &raw const TABLES => _,
                line = out(reg) _,
                pass = inout(reg) start => _,
                end = in(reg) end,
                common = in(reg) &raw const common,
                x = out(reg) _,
                x2 = out(reg) _,
                trits = inout(reg) trits => _,
                slot = inout(reg) slot => _,
                packed = out(reg) _,
                second = out(reg) _,
                n = out(reg) _,
                ahead = in(reg) self.row_tile * size_of::<Packed>(),
                CONFIG = const offset_of!(Pass, config),
                X = const offset_of!(Pass, x),
                PACKED = const offset_of!(Pass, packed),
                NEXT = const offset_of!(Pass, next),
                ACC = const offset_of!(Pass, acc),
                PASS_BYTES = const size_of::<Pass>(),
                N_PAIRS = const offset_of!(Common, n_pairs),
                N_CUT = const offset_of!(Common, n_cut),
                N_LEFT = const offset_of!(Common, n_left),
                STRIDE = const offset_of!(Common, stride),
                LAST = const offset_of!(Common, last),
                TILE = const size_of::<Packed>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                out("tmm7") _,
                out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _,
                out("zmm22") _, out("zmm23") _, out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
                out("zmm28") _, out("zmm29") _, out("zmm30") _,
                options(nostack),
            );
        }
        (self.n, self.config) = (0, ptr::null());
    }
}

/// What all passes have in common. [`Passes::run`] reads this.
#[repr(C)]
struct Common {
    /// Pairs of packed tiles, with one that is cut off.
    n_pairs: usize,
    /// Pairs of fewer than three steps: none or one.
    n_cut: usize,
    /// Its steps.
    n_left: usize,
    /// Bytes from one token's sums to the next.
    stride: usize,
    /// The last packed tile of the matrix.
    last: *const Packed,
}

/// What [`unpack`] wants in `zmm16` to `zmm19`: the bits of a code that are its low ones, and the trits of each code.
#[repr(C, align(64))]
struct Tables {
    nibble: [u8; 64],
    trits: [[i8; 64]; 3],
}

static TABLES: Tables = {
    let mut trits = [[0; 64]; 3];
    let mut i = 0;
    while i < 3 * 64 {
        // Bit 5 of an index is whatever lies there.
        let code = i % 32;
        if code < 27 {
            trits[i / 64][i % 64] = t5::trits_of(code as u8)[i / 64];
        }
        i += 1;
    }
    Tables { nibble: [15; 64], trits }
};

/// Text that finds the second tile of the pair at `packed`. A row tile may end with the first; whatever lies behind it will do.
macro_rules! find_second {
    () => {
        concat!(
            "lea {second}, [{packed} + {TILE}]\n",
            "cmp {second}, [{common} + {LAST}]\n",
            "cmova {second}, [{common} + {LAST}]\n",
        )
    };
}
use find_second;

/// Text that multiplies 64 columns, step `$i` of a pair, with other instructions behind each of the eight.
macro_rules! step {
    ($i:literal: $a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr, $g:expr, $h:expr) => {
        concat!(
            "tileloadd tmm6, [{trits} + 2*{line} + 16*128*",
            $i,
            "]\n",
            $a,
            "tileloadd tmm4, [{x} + {line} + 16*64*",
            $i,
            "]\n",
            $b,
            "tileloadd tmm7, [{trits} + 2*{line} + 16*128*",
            $i,
            " + 64]\n",
            $c,
            "tdpbssd tmm0, tmm4, tmm6\n",
            $d,
            "tdpbssd tmm1, tmm4, tmm7\n",
            $e,
            "tileloadd tmm5, [{x2} + {line} + 16*64*",
            $i,
            "]\n",
            $f,
            "tdpbssd tmm2, tmm5, tmm6\n",
            $g,
            "tdpbssd tmm3, tmm5, tmm7\n",
            $h,
        )
    };
}
use step;

/// Text that unpacks two codes of half of the rows of a tile of a pair: 6 of 96 stores. The fifth bits of a half stay in `zmm20`.
macro_rules! unpack {
    ($tile:tt $at:tt 0) => {
        concat!(
            load!(zmm20, $tile, 4, $at),
            unpack_codes!($tile, $at, 0, "vpsllw zmm22, zmm20, 4\n", "vpsllw zmm24, zmm20, 3\n"),
        )
    };
    ($tile:tt $at:tt 1) => {
        unpack_codes!($tile, $at, 1, "vpsllw zmm22, zmm20, 2\n", "vpsllw zmm24, zmm20, 1\n")
    };
    ($tile:tt $at:tt 2) => {
        unpack_codes!($tile, $at, 2, "vmovdqa64 zmm22, zmm20\n", "vpsrlw zmm24, zmm20, 1\n")
    };
    ($tile:tt $at:tt 3) => {
        unpack_codes!($tile, $at, 3, "vpsrlw zmm22, zmm20, 2\n", "vpsrlw zmm24, zmm20, 3\n")
    };
}
use unpack;

/// Text that loads half of a plane, and asks for that of the next row tile.
macro_rules! load {
    ($to:tt, 0, $plane:tt, $at:tt) => {
        load!($to, "{packed}", $plane, $at)
    };
    ($to:tt, 1, $plane:tt, $at:tt) => {
        load!($to, "{second}", $plane, $at)
    };
    ($to:tt, $from:literal, $plane:tt, $at:tt) => {
        concat!(
            "vmovdqu64 ",
            stringify!($to),
            ", [",
            $from,
            " + 128*",
            $plane,
            " + ",
            $at,
            "]\n",
            "prefetcht1 [",
            $from,
            " + {ahead} + 128*",
            $plane,
            " + ",
            $at,
            "]\n",
        )
    };
}
use load;

/// `$even` and `$odd` bring the fifth bits of the codes, in `zmm20`, to bit 4.
macro_rules! unpack_codes {
    ($tile:tt, $at:tt, $plane:tt, $even:literal, $odd:literal) => {
        concat!(
            load!(zmm21, $tile, $plane, $at),
            $even,
            "vpsrlw zmm23, zmm21, 4\n",
            $odd,
            // Bits of the first where the third is set, of the second elsewhere.
            "vpternlogd zmm21, zmm22, zmm16, 0xE4\n",
            "vpternlogd zmm23, zmm24, zmm16, 0xE4\n",
            "vpermb zmm25, zmm21, zmm17\n",
            "vpermb zmm26, zmm21, zmm18\n",
            "vpermb zmm27, zmm21, zmm19\n",
            "vpermb zmm28, zmm23, zmm17\n",
            "vpermb zmm29, zmm23, zmm18\n",
            "vpermb zmm30, zmm23, zmm19\n",
            store!(0, zmm25, $tile, $at, $plane),
            store!(1, zmm26, $tile, $at, $plane),
            store!(2, zmm27, $tile, $at, $plane),
            store!(3, zmm28, $tile, $at, $plane),
            store!(4, zmm29, $tile, $at, $plane),
            store!(5, zmm30, $tile, $at, $plane),
        )
    };
}
use unpack_codes;

/// Text that stores four columns of half of the rows, of twelve that a plane has.
macro_rules! store {
    ($i:literal, $from:tt, $tile:tt, $at:tt, $plane:tt) => {
        concat!(
            "vmovdqa64 [{slot} + 128*(24*",
            $tile,
            " + 6*",
            $plane,
            " + ",
            $i,
            ") + ",
            $at,
            "], ",
            stringify!($from),
            "\n",
        )
    };
}
use store;

/// Text that unpacks the pair at `packed` and `second`.
macro_rules! unpack_pair {
    () => {
        concat!(
            unpack!(0 0 0), unpack!(0 0 1), unpack!(0 0 2), unpack!(0 0 3),
            unpack!(0 64 0), unpack!(0 64 1), unpack!(0 64 2), unpack!(0 64 3),
            unpack!(1 0 0), unpack!(1 0 1), unpack!(1 0 2), unpack!(1 0 3),
            unpack!(1 64 0), unpack!(1 64 1), unpack!(1 64 2), unpack!(1 64 3),
        )
    };
}
use unpack_pair;

/// Text that multiplies a pair and unpacks the next.
macro_rules! three_steps {
    () => {
        concat!(
            step!(0: unpack!(0 0 0), "", unpack!(0 0 1), unpack!(0 0 2), "", unpack!(0 0 3), unpack!(0 64 0), ""),
            step!(1: unpack!(0 64 1), unpack!(0 64 2), "", unpack!(0 64 3), unpack!(1 0 0), "", unpack!(1 0 1), unpack!(1 0 2)),
            step!(2: "", unpack!(1 0 3), unpack!(1 64 0), "", unpack!(1 64 1), unpack!(1 64 2), "", unpack!(1 64 3)),
        )
    };
}
use three_steps;

/// [`three_steps`] of a pair that has two.
macro_rules! two_steps {
    () => {
        concat!(
            step!(0: unpack!(0 0 0), unpack!(0 0 1), unpack!(0 0 2), unpack!(0 0 3),
                unpack!(0 64 0), unpack!(0 64 1), unpack!(0 64 2), unpack!(0 64 3)),
            step!(1: unpack!(1 0 0), unpack!(1 0 1), unpack!(1 0 2), unpack!(1 0 3),
                unpack!(1 64 0), unpack!(1 64 1), unpack!(1 64 2), unpack!(1 64 3)),
        )
    };
}
use two_steps;

/// [`three_steps`] of a pair that has one.
macro_rules! one_step {
    () => {
        concat!(step!(0: "", "", "", "", "", "", "", ""), unpack_pair!())
    };
}
use one_step;
