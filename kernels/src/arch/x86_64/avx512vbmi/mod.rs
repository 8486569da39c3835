//! Kernels for AVX-512 with VNNI and VBMI, whose `vpermb` looks up 64 bytes in a table of 64.

pub mod t5_dpbusd;

pub mod interleaved {
    //! The loops of `arch/x86_64/dpbusd.rs` for registers of 64 bytes, compiled with VBMI so that decoders are inlined.

    crate::arch::x86_64::dpbusd::dpbusd_loops! {
        features: "avx512f,avx512bw,avx512vnni,avx512vbmi", token: Avx512Vbmi, register: __m512i, bytes: 64,
        few: [1 2 3 4 5 6 7 8], side_by_side: [1],
        tokens: [1 2 3 4 5 6 7 8], sums: 16,
        zero: _mm512_setzero_si512, set1: _mm512_set1_epi32, load: _mm512_loadu_si512, store: _mm512_storeu_si512,
        add: _mm512_add_epi32, dpbusd: _mm512_dpbusd_epi32
    }
}
