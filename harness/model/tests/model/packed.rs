//! What is kept beside a model gives the bits that packing gives, is made anew when it no longer fits, and is never half there.

use std::fs;
use std::path::{Path, PathBuf};

use ternbench_kernels::{Dispatch, Pool, registry};
use ternbench_model::packed::Place;
use ternbench_model::weights::{self, OpenOptions, WeightSource};
use ternbench_model::{Engine, Logits, Segment, Transformer};

use crate::common;

/// A model file of its own, that nobody else writes beside.
fn model_in(folder: &Path) -> PathBuf {
    let path = folder.join("model.gguf");
    fs::copy(common::fixture("i2_s.gguf"), &path).unwrap();
    path
}

fn open(path: &Path) -> Box<dyn WeightSource> {
    weights::open(path, OpenOptions::default()).unwrap()
}

fn load(source: &dyn WeightSource, kernels: &Dispatch, pool: &Pool) -> Transformer {
    Transformer::load(source, kernels.clone(), pool, &|_| {}).unwrap()
}

fn logits(model: &Transformer, pool: &Pool) -> Vec<f32> {
    let tokens: Vec<u32> = (0..20).map(|i| i * 23 % 512).collect();
    let mut engine = Engine::new(model, pool);
    let mut cache = engine.new_cache(tokens.len());
    engine.forward(&mut [Segment { cache: &mut cache, tokens: &tokens, logits: Logits::From(0) }]).unwrap().to_vec()
}

fn kept_files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "model.gguf").collect();
    names.sort();
    names
}

/// The model at `path`, kept as i2s, and its place.
fn kept_i2s(path: &Path, pool: &Pool) -> (Dispatch, Box<dyn WeightSource>, Place) {
    let kernels = Dispatch::parse("scalar-i2s-unpack").unwrap();
    let source = open(path);
    let place = Place::beside(&*source).unwrap().unwrap();
    place.keep_linears(&load(&*source, &kernels, pool), "hash").unwrap();
    (kernels, source, place)
}

#[test]
fn every_layout_comes_back_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_in(folder.path());
    let pool = Pool::new(2).unwrap();
    let pairs = ["scalar-tl2-lookup+scalar-i2s-unpack", "scalar-i8-naive+scalar-tq1-unpack"].map(str::to_owned);
    let names = registry::supported().map(|kernel| kernel.info().name.to_owned());
    for name in names.chain(pairs) {
        let kernels = Dispatch::parse(&name).unwrap();
        let source = open(&path);
        let place = Place::beside(&*source).unwrap().unwrap();
        let fresh = load(&*source, &kernels, &pool);
        if place.linears(&*source, &kernels, &pool).unwrap().is_none() {
            place.keep_linears(&fresh, &source.hash().unwrap()).unwrap();
        }
        let kept = place.linears(&*source, &kernels, &pool).unwrap().expect("it was kept");
        assert_eq!(kept.hash().unwrap(), source.hash().unwrap());
        let again = load(&kept, &kernels, &pool);
        assert_eq!(again.census(), fresh.census(), "{name}");
        assert_eq!(again.weight_bytes(), fresh.weight_bytes(), "{name}");
        assert_eq!(logits(&again, &pool), logits(&fresh, &pool), "{name}");
    }
    assert!(kept_files(folder.path()).contains(&"model.gguf.tl2+i2s.packed".to_owned()));
}

#[test]
fn the_screen_of_the_head_is_kept_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_in(folder.path());
    let pool = Pool::new(2).unwrap();
    let source = open(&path);
    let place = Place::beside(&*source).unwrap().unwrap();
    assert!(place.screen(&pool).unwrap().is_none());
    let mut model = load(&*source, &registry::default_kernel().into(), &pool);
    model.screen_head(&pool, None);
    let made = model.screen().expect("finite weights").packed().to_vec();
    place.keep_screen(model.screen().unwrap()).unwrap();
    let (copy, _) = place.screen(&pool).unwrap().expect("it was kept");
    assert!(*copy == *made);
    assert!(model.screen_with(copy));
    assert!(
        !load(&*source, &registry::default_kernel().into(), &pool)
            .screen_with(ternbench_kernels::AlignedBytes::zeroed(64).into())
    );
}

#[test]
fn another_file_another_reading_or_another_layout_is_not_taken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_in(folder.path());
    let pool = Pool::new(1).unwrap();
    let (kernels, source, _) = kept_i2s(&path, &pool);
    let finds = |source: &dyn WeightSource, kernels: &Dispatch| {
        Place::beside(source).unwrap().unwrap().linears(source, kernels, &pool).unwrap().is_some()
    };
    assert!(finds(&*source, &kernels));
    assert!(!finds(&*source, &Dispatch::parse("scalar-tq1-unpack").unwrap()));
    let arm = OpenOptions { i2s_layout: weights::I2sLayout::Arm };
    assert!(!finds(&*weights::open(&path, arm).unwrap(), &kernels));
    // The same bytes, written later.
    drop(source);
    let later = fs::metadata(&path).unwrap().modified().unwrap() + std::time::Duration::from_secs(1);
    fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    assert!(!finds(&*open(&path), &kernels));
    assert_eq!(kept_files(folder.path()), ["model.gguf.i2s.packed"], "and no temporary file is left");
}

/// Cut anywhere, or with any byte changed, it is refused with one line that names it; nothing panics.
#[test]
fn damage_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_in(folder.path());
    let pool = Pool::new(1).unwrap();
    let (kernels, source, place) = kept_i2s(&path, &pool);
    let expected = logits(&load(&*source, &kernels, &pool), &pool);
    let kept = folder.path().join("model.gguf.i2s.packed");
    let sound = fs::read(&kept).unwrap();
    let mut random = common::Random(5);
    let mut seen = 0;
    for case in 0..300 {
        let mut bytes = sound.clone();
        let at = if case % 2 == 0 { random.below(600) } else { random.below(bytes.len()) };
        if case % 3 == 0 {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << random.below(8);
        }
        fs::write(&kept, &bytes).unwrap();
        match place.linears(&*source, &kernels, &pool) {
            Err(error) => {
                let line = error.to_string();
                assert!(line.contains("model.gguf.i2s.packed") && !line.contains('\n'), "{line}");
                seen += 1;
            }
            // Another version is not damage, and the bytes between sections mean nothing.
            Ok(None) => assert!((8..12).contains(&at), "{at}"),
            Ok(Some(found)) => assert_eq!(logits(&load(&found, &kernels, &pool), &pool), expected, "{at}"),
        }
    }
    assert!(seen > 280, "{seen}");
    fs::write(&kept, &sound).unwrap();
    assert!(place.linears(&*source, &kernels, &pool).unwrap().is_some());
}
