//! `amx-t5-tdpbssd`: three trits in five bits, looked up into tiles of trits, which `tdpbssd` multiplies by tiles of activations. Tiles
//! of sums are int32, so nothing can overflow, and nothing is to be corrected: trits and activations are both signed.
//!
//! A block of 32 rows is unpacked to the L1 cache and multiplied by all tokens, 32 at a time: two tiles of 16 tokens by two of 16 rows keep
//! four tiles of sums, which go back to memory after each block. `tdpbssd` keeps a unit of its own busy for 16 cycles, so the vector units
//! unpack the next block meanwhile, over what the last tokens have just read of this one.
//!
//! On a Xeon whose core does 3500 G multiply-adds a second this way, 2560 x 2560 by 128 tokens reaches 54 % of it: a load of a tile for each
//! product leaves 84 %, activations from the L2 cache 80, sums that go back to memory 61, unpacking the rest.
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

/// From this many tokens on tiles are worth unpacking for: three take 0.7 of the time by them, two as long, one took 1.6 times as long before it was
/// read from four places without.
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
/// Columns of two packed tiles, which are whole tiles of activations too.
const PAIR: usize = 2 * t5::SHAPE.columns;
/// Columns of a block, at most: 18 KB of trits. They share an L1 cache of 48 KB, which every CPU with AMX has, with as many bytes of
/// activations, which go by from the L2 cache, and the sums. With 4 and 5 pairs a batch of 128 tokens took 1.03 and 1.16 of the time,
/// with 2 pairs 1.13.
const COLUMNS: usize = 3 * PAIR;

/// Bytes of activations that stay in the L2 cache, of 2 MB on every CPU with AMX, while others go by.
const ACTIVATIONS: usize = 1 << 20;

/// A block of trits, unpacked.
#[repr(C, align(64))]
struct Trits([Step; COLUMNS / 4]);

/// Some columns of 32 rows.
struct Block<'a> {
    packed: &'a [Packed],
    columns: Range<usize>,
    /// Of the row tile, in the range that is computed.
    index: usize,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn compute(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let (n_rows, n_tiles) = (rows.len(), rows.len() / TILE_ROWS);
    let n_pairs = w.k.div_ceil(PAIR);
    let per_row = n_pairs.div_ceil(COLUMNS / PAIR);
    let row_bytes = t5::SHAPE.row_tile(w.k, 0).len();
    // Weights in their order, where all activations stay in the L2 cache; elsewhere all row tiles go by before the next columns.
    let in_order = x.m * x.stride <= ACTIVATIONS;
    let ahead = if in_order { 16 * 1024 } else { row_bytes };
    let blocks = (0..per_row * n_tiles).map(|i| {
        let (at, index) = if in_order { (i % per_row, i / per_row) } else { (i / n_tiles, i % n_tiles) };
        let pairs = n_pairs * at / per_row..n_pairs * (at + 1) / per_row;
        let row_tile = t5::SHAPE.row_tile(w.k, rows.start / TILE_ROWS + index);
        let packed = w.data[row_tile].as_chunks().0;
        let packed = &packed[2 * pairs.start..packed.len().min(2 * pairs.end)];
        Block { packed, columns: pairs.start * PAIR..x.stride.min(pairs.end * PAIR), index }
    });
    let mut blocks = blocks.peekable();

    let mut trits = Trits([[0; PLANE_BYTES]; COLUMNS / 4]);
    let (trits, acc) = (trits.0.as_mut_ptr(), acc.as_mut_ptr());
    let (config, rest) = (config_for(TOKENS), config_for(x.m % TOKENS));
    let mut passes = Passes::new(n_rows);
    // SAFETY: the CPU has AMX by the token that the caller holds. A block has at most `COLUMNS` columns, for which there are as many steps in
    // `trits` and tiles of both groups of tokens in `x`; its sums are in `acc`, whose length was asserted, for as many tokens as the
    // configuration has. Nothing else touches `trits` and `acc` before all passes have run.
    unsafe {
        passes.push(Pass::unpack(trits, blocks.peek().map_or(&[], |first| first.packed), ahead));
        while let Some(Block { columns, index, .. }) = blocks.next() {
            let next = blocks.peek().map_or(&[][..], |next| next.packed);
            for token in (0..x.m).step_by(TOKENS) {
                let is_last = token + TOKENS >= x.m;
                let group = |token| x.tiles(token / TILE_TOKENS)[columns.start / TILE_COLUMNS..].as_ptr();
                let second = token + TILE_TOKENS;
                passes.push(Pass {
                    config: if token + TOKENS <= x.m { &config } else { &rest },
                    x: [group(token), if second < x.m { group(second) } else { ptr::null() }],
                    trits_end: trits.add(columns.len() / 4),
                    acc: acc.add(token * n_rows + index * TILE_ROWS),
                    more: columns.start > 0,
                    ..Pass::unpack(trits, if is_last { next } else { &[] }, ahead)
                });
            }
        }
        passes.run();
    }
}

/// Four tiles of sums, two of activations and two of trits, for so many tokens.
fn config_for(n_tokens: usize) -> Config {
    let (a, b) = (n_tokens.min(TILE_TOKENS), n_tokens.saturating_sub(TILE_TOKENS));
    Config::new([a, a, b, b, a, b, 16, 16].map(|rows| (rows, 64)))
}

/// Adds the products of a block and up to 32 tokens to their sums, and unpacks another block in its place. [`Passes::run`] reads this.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pass {
    /// The tiles' shapes; null where they are those of the pass before.
    config: *const Config,
    /// Tiles of activations of 16 tokens, one for each step of 64 columns. The second is null where there are no more than 16 tokens.
    x: [*const Activations; 2],
    /// Unpacked, 16 for each of these.
    trits: *mut Step,
    trits_end: *mut Step,
    /// What to unpack.
    packed: *const Packed,
    packed_end: *const Packed,
    /// Bytes from there to what is asked for meanwhile.
    ahead: usize,
    /// The first token's sum of the first row.
    acc: *mut i32,
    /// Whether there are sums, to be added to.
    more: bool,
}

impl Pass {
    /// One that only unpacks.
    fn unpack(trits: *mut Step, packed: &[Packed], ahead: usize) -> Self {
        let Range { start, end } = packed.as_ptr_range();
        Self {
            config: ptr::null(),
            x: [ptr::null(); 2],
            trits,
            trits_end: trits,
            packed: start,
            packed_end: end,
            ahead,
            acc: ptr::null_mut(),
            more: false,
        }
    }
}

/// Passes to be done, one after the other.
struct Passes {
    list: [Pass; Self::MOST],
    n: usize,
    /// Of the last of them.
    config: *const Config,
    /// Sums from one token to the next.
    stride: usize,
}

impl Passes {
    /// As many go by before tiles are released and configured again, which costs some 100 ns.
    const MOST: usize = 64;

    fn new(stride: usize) -> Self {
        let nothing = Pass::unpack(ptr::null_mut(), &[], 0);
        Self { list: [nothing; Self::MOST], n: 0, config: ptr::null(), stride }
    }

    /// Adds a pass, after those of a full list are done.
    ///
    /// # Safety
    /// That of [`Self::run`], by which the pointers of `pass` have to be good until then.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    unsafe fn push(&mut self, pass: Pass) {
        if self.n == Self::MOST {
            // SAFETY: by the contract.
            unsafe { self.run() };
        }
        let config = std::mem::replace(&mut self.config, pass.config);
        self.list[self.n] = if config == pass.config { Pass { config: ptr::null(), ..pass } } else { pass };
        self.n += 1;
    }

    /// Does all passes and forgets them.
    ///
    /// # Safety
    /// The CPU has AMX, and this process may use it. Of every pass that was pushed since the last run: `config` is for as many tokens as there
    /// are tiles in `x` and sums in `acc`, `self.stride` apart; of each of these tiles there is one for every 16 steps from `trits` to
    /// `trits_end`; from `trits` on, at a multiple of 64 bytes, is room for both these and 24 steps for each tile from `packed` to
    /// `packed_end`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    unsafe fn run(&mut self) {
        if self.n == 0 {
            return;
        }
        let Range { start, end } = self.list[..self.n].as_ptr_range();
        // SAFETY: by the contract, and because no pass has fewer tokens than its tiles have rows. Prefetches may go anywhere.
        unsafe {
            asm!(
                "vmovdqa64 zmm16, [{a}]",
                "vmovdqa64 zmm17, [{a} + 64]",
                "vmovdqa64 zmm18, [{a} + 128]",
                "vmovdqa64 zmm19, [{a} + 192]",
                "mov {line:e}, 64",

                "2:",
                "mov {trits}, [{pass} + {TRITS}]",
                "mov {next}, {trits}",
                "mov {packed}, [{pass} + {PACKED}]",
                "mov {ahead}, [{pass} + {AHEAD}]",
                "cmp {trits}, [{pass} + {TRITS_END}]",
                "je 8f",

                "mov {a}, [{pass} + {CONFIG}]",
                "test {a}, {a}",
                "jz 3f",
                "ldtilecfg [{a}]",
                "3:",
                "mov {x}, [{pass} + {X}]",
                "mov {x2}, [{pass} + {X} + 8]",
                // The sums of the first 16 tokens, and of the others.
                "mov {a}, [{pass} + {ACC}]",
                "mov {b}, {stride}",
                "shl {b}, 4",
                "add {b}, {a}",
                "cmp byte ptr [{pass} + {MORE}], 0",
                "je 4f",
                "tileloadd tmm0, [{a} + {stride}]",
                "tileloadd tmm1, [{a} + {stride} + 64]",
                "test {x2}, {x2}",
                "jz 5f",
                "tileloadd tmm2, [{b} + {stride}]",
                "tileloadd tmm3, [{b} + {stride} + 64]",
                "jmp 5f",
                "4:",
                "tilezero tmm0",
                "tilezero tmm1",
                "test {x2}, {x2}",
                "jz 5f",
                "tilezero tmm2",
                "tilezero tmm3",

                // 64 columns.
                "5:",
                "tileloadd tmm6, [{trits} + 2*{line}]",
                "tileloadd tmm4, [{x} + {line}]",
                "tileloadd tmm7, [{trits} + 2*{line} + 64]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "add {x}, 16*64",
                "add {trits}, 16*128",
                "test {x2}, {x2}",
                "jz 6f",
                "tileloadd tmm5, [{x2} + {line}]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "add {x2}, 16*64",
                "6:",
                // Unpack a tile, if it only overwrites what has been read.
                "cmp {packed}, [{pass} + {PACKED_END}]",
                "je 7f",
                "lea {b}, [{next} + 24*128]",
                "cmp {b}, {trits}",
                "ja 7f",
                unpack_tile!(),
                "7:",
                "cmp {trits}, [{pass} + {TRITS_END}]",
                "jne 5b",

                "mov {b}, {stride}",
                "shl {b}, 4",
                "add {b}, {a}",
                "tilestored [{a} + {stride}], tmm0",
                "tilestored [{a} + {stride} + 64], tmm1",
                "test {x2}, {x2}",
                "jz 8f",
                "tilestored [{b} + {stride}], tmm2",
                "tilestored [{b} + {stride} + 64], tmm3",

                "8:",
                "cmp {packed}, [{pass} + {PACKED_END}]",
                "je 9f",
                unpack_tile!(),
                "jmp 8b",
                "9:",
                "add {pass}, {PASS_BYTES}",
                "cmp {pass}, {end}",
                "jne 2b",
                "tilerelease",
                a = inout(reg) &raw const TABLES => _,
                b = out(reg) _,
                line = out(reg) _,
                pass = inout(reg) start => _,
                end = in(reg) end,
                stride = in(reg) self.stride * size_of::<i32>(),
                x = out(reg) _,
                x2 = out(reg) _,
                trits = out(reg) _,
                packed = out(reg) _,
                next = out(reg) _,
                ahead = out(reg) _,
                CONFIG = const offset_of!(Pass, config),
                X = const offset_of!(Pass, x),
                TRITS = const offset_of!(Pass, trits),
                TRITS_END = const offset_of!(Pass, trits_end),
                PACKED = const offset_of!(Pass, packed),
                PACKED_END = const offset_of!(Pass, packed_end),
                AHEAD = const offset_of!(Pass, ahead),
                ACC = const offset_of!(Pass, acc),
                MORE = const offset_of!(Pass, more),
                PASS_BYTES = const size_of::<Pass>(),
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

/// What [`unpack_tile`] wants in `zmm16` to `zmm19`: the bits of a code that are its low ones, and the trits of each code.
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

/// Text that unpacks the tile at `packed` to the 24 steps at `next` and goes on to those behind, as in `avx512vbmi-t5-dpbusd`.
macro_rules! unpack_tile {
    () => {
        concat!(unpack_rows!(0), unpack_rows!(64), "add {packed}, 5*128\n", "add {next}, 24*128\n",)
    };
}
use unpack_tile;

/// Text that unpacks half of the rows of a tile.
macro_rules! unpack_rows {
    ($at:literal) => {
        concat!(
            "vmovdqu64 zmm20, [{packed} + 128*4 + ",
            $at,
            "]\n",
            "prefetcht1 [{packed} + {ahead} + 128*4 + ",
            $at,
            "]\n",
            unpack_plane!($at, 0, "vpsllw zmm22, zmm20, 4", "vpsllw zmm24, zmm20, 3"),
            unpack_plane!($at, 1, "vpsllw zmm22, zmm20, 2", "vpsllw zmm24, zmm20, 1"),
            unpack_plane!($at, 2, "vmovdqa64 zmm22, zmm20", "vpsrlw zmm24, zmm20, 1"),
            unpack_plane!($at, 3, "vpsrlw zmm22, zmm20, 2", "vpsrlw zmm24, zmm20, 3"),
        )
    };
}
use unpack_rows;

/// Text that unpacks two codes of half of the rows: `$even` and `$odd` bring their fifth bits, in `zmm20`, to bit 4.
macro_rules! unpack_plane {
    ($at:literal, $plane:literal, $even:literal, $odd:literal) => {
        concat!(
            "vmovdqu64 zmm21, [{packed} + 128*",
            $plane,
            " + ",
            $at,
            "]\n",
            "prefetcht1 [{packed} + {ahead} + 128*",
            $plane,
            " + ",
            $at,
            "]\n",
            $even,
            "\n",
            "vpsrlw zmm23, zmm21, 4\n",
            $odd,
            "\n",
            // Bits of the first where the third is set, of the second elsewhere.
            "vpternlogd zmm21, zmm22, zmm16, 0xE4\n",
            "vpternlogd zmm23, zmm24, zmm16, 0xE4\n",
            "vpermb zmm25, zmm21, zmm17\n",
            "vpermb zmm26, zmm21, zmm18\n",
            "vpermb zmm27, zmm21, zmm19\n",
            "vpermb zmm28, zmm23, zmm17\n",
            "vpermb zmm29, zmm23, zmm18\n",
            "vpermb zmm30, zmm23, zmm19\n",
            "vmovdqa64 [{next} + 128*(6*",
            $plane,
            ") + ",
            $at,
            "], zmm25\n",
            "vmovdqa64 [{next} + 128*(6*",
            $plane,
            " + 1) + ",
            $at,
            "], zmm26\n",
            "vmovdqa64 [{next} + 128*(6*",
            $plane,
            " + 2) + ",
            $at,
            "], zmm27\n",
            "vmovdqa64 [{next} + 128*(6*",
            $plane,
            " + 3) + ",
            $at,
            "], zmm28\n",
            "vmovdqa64 [{next} + 128*(6*",
            $plane,
            " + 4) + ",
            $at,
            "], zmm29\n",
            "vmovdqa64 [{next} + 128*(6*",
            $plane,
            " + 5) + ",
            $at,
            "], zmm30\n",
        )
    };
}
use unpack_plane;
