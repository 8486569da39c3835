//! Instruction sets: the features kernels ask for, and tokens that prove at run time that the CPU has them.
//!
//! A kernel stores its token, and only [`Token::detect`] hands one out, so a kernel that exists can run: there is no
//! feature test inside a kernel or in its callers.

use std::fmt;

macro_rules! features {
    ($($variant:ident $name:literal $arch:literal;)*) => {
        /// A CPU feature, named as `/proc/cpuinfo` or `std::arch` names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Feature {
            $(#[doc = concat!("`", $name, "` on ", $arch, ".")] $variant,)*
        }

        impl Feature {
            /// Every feature this crate knows, on every architecture.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The feature's usual name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The architecture that has it.
            pub const fn arch(self) -> &'static str {
                match self { $(Self::$variant => $arch,)* }
            }

            /// The feature called `name`.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|feature| feature.name() == name)
            }
        }
    };
}

features! {
    Avx2 "avx2" "x86_64";
    Fma "fma" "x86_64";
    F16c "f16c" "x86_64";
    AvxVnni "avxvnni" "x86_64";
    Avx512f "avx512f" "x86_64";
    Avx512bw "avx512bw" "x86_64";
    Avx512vl "avx512vl" "x86_64";
    Avx512vnni "avx512vnni" "x86_64";
    Avx512vbmi "avx512vbmi" "x86_64";
    Avx512bf16 "avx512bf16" "x86_64";
    AmxTile "amx_tile" "x86_64";
    AmxInt8 "amx_int8" "x86_64";
    AmxBf16 "amx_bf16" "x86_64";
    Neon "neon" "aarch64";
    Dotprod "dotprod" "aarch64";
    I8mm "i8mm" "aarch64";
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Feature {
    /// Whether this CPU, and its operating system, offer the feature.
    pub fn is_detected(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            match self {
                Self::Avx2 => is_x86_feature_detected!("avx2"),
                Self::Fma => is_x86_feature_detected!("fma"),
                Self::F16c => is_x86_feature_detected!("f16c"),
                Self::AvxVnni => is_x86_feature_detected!("avxvnni"),
                Self::Avx512f => is_x86_feature_detected!("avx512f"),
                Self::Avx512bw => is_x86_feature_detected!("avx512bw"),
                Self::Avx512vl => is_x86_feature_detected!("avx512vl"),
                Self::Avx512vnni => is_x86_feature_detected!("avx512vnni"),
                Self::Avx512vbmi => is_x86_feature_detected!("avx512vbmi"),
                Self::Avx512bf16 => is_x86_feature_detected!("avx512bf16"),
                Self::AmxTile => amx::is_offered(24),
                Self::AmxInt8 => amx::is_offered(25),
                Self::AmxBf16 => amx::is_offered(22),
                Self::Neon | Self::Dotprod | Self::I8mm => false,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            match self {
                Self::Neon => is_aarch64_feature_detected!("neon"),
                Self::Dotprod => is_aarch64_feature_detected!("dotprod"),
                Self::I8mm => is_aarch64_feature_detected!("i8mm"),
                _ => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            false
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod amx {
    //! Tile registers: the standard library does not detect them yet, and a process has to ask the system for their 8 KB of state. Where
    //! it is refused, this CPU counts as one that lacks them.

    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    /// Whether the CPU has the feature of this bit (of EDX in leaf 7 of CPUID) and this process may use tiles.
    pub fn is_offered(bit: u32) -> bool {
        static TILES: OnceLock<bool> = OnceLock::new();
        #[allow(unused_unsafe, reason = "the intrinsic became safe after Rust 1.89")]
        // SAFETY: every x86-64 CPU has CPUID, and one with AVX-512 has leaf 7.
        let has_feature = || unsafe { __cpuid_count(7, 0) }.edx >> bit & 1 == 1;
        is_x86_feature_detected!("avx512f") && has_feature() && *TILES.get_or_init(ask)
    }

    /// Asks for all threads of this process.
    fn ask() -> bool {
        #[cfg(target_os = "linux")]
        {
            const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
            const XFEATURE_XTILEDATA: libc::c_long = 18;
            // SAFETY: the call touches no memory. From a thread's first tile on, what a signal leaves on its stack is 8 KB longer, which the
            // standard library's stacks for signals have room for, but not for its message about an overflown stack: a segmentation
            // fault without words is what is left of that.
            unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
        }
        #[cfg(not(target_os = "linux"))]
        false
    }
}

/// The features of this CPU that kernels can use.
pub fn detected() -> Vec<Feature> {
    Feature::ALL.iter().copied().filter(|feature| feature.is_detected()).collect()
}

/// Proof that the CPU has a set of features.
pub trait Token: Copy + Send + Sync + 'static {
    /// The features it proves.
    const FEATURES: &'static [Feature];
    /// The token, if this CPU has them all.
    fn detect() -> Option<Self>;
}

macro_rules! tokens {
    ($($(#[$doc:meta])* $name:ident = [$($feature:ident),*];)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name(());

        impl Token for $name {
            const FEATURES: &'static [Feature] = &[$(Feature::$feature),*];
            fn detect() -> Option<Self> {
                Self::FEATURES.iter().all(|feature| feature.is_detected()).then_some(Self(()))
            }
        }
    )*};
}

tokens! {
    /// Nothing at all: portable code.
    Scalar = [];
    /// AVX2 with FMA and F16C: every x86-64 CPU since 2013 (Intel) and 2015 (AMD).
    Avx2 = [Avx2, Fma, F16c];
    /// AVX-512's foundation, with shorter registers: without them nothing that is halved may lie in registers 16 to 31, and the
    /// compiler moves sums to memory and back.
    Avx512 = [Avx2, Fma, F16c, Avx512f, Avx512vl];
    /// AVX-512 with byte/word operations.
    Avx512Bw = [Avx512f, Avx512bw];
    /// AVX2 with `vpdpbusd` in its short encoding.
    AvxVnni = [Avx2, AvxVnni];
    /// AVX-512 with byte/word operations and `vpdpbusd`.
    Avx512Vnni = [Avx512f, Avx512bw, Avx512vl, Avx512vnni];
    /// The same with byte permutations across a register (`vpermb`).
    Avx512Vbmi = [Avx512f, Avx512bw, Avx512vl, Avx512vnni, Avx512vbmi];
    /// AVX-512 with byte/word operations and `vdpbf16ps`.
    Avx512Bf16 = [Avx2, Fma, F16c, Avx512f, Avx512bw, Avx512vl, Avx512bf16];
    /// Tile registers with int8 products, and what unpacks for them: every CPU with AMX has it.
    AmxInt8 = [Avx512f, Avx512bw, Avx512vl, Avx512vnni, Avx512vbmi, AmxTile, AmxInt8];
    /// Tile registers with products of bf16, and what rounds to bf16.
    AmxBf16 = [Avx2, Fma, F16c, Avx512f, Avx512bw, Avx512vl, Avx512bf16, AmxTile, AmxBf16];
    /// NEON, which every aarch64 CPU has.
    Neon = [Neon];
    /// NEON with `sdot`/`udot`.
    NeonDot = [Neon, Dotprod];
    /// NEON with `smmla`.
    NeonI8mm = [Neon, I8mm];
}
