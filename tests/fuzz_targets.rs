//! The fuzz targets with the inputs that they start from, and the beginnings of those: so that `fuzz/`, which
//! needs a nightly compiler, cannot rot. Whoever finds something adds it to the seeds.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fuzz/src/targets.rs"]
mod targets;

#[test]
fn every_seed_and_all_of_its_beginnings_pass() {
    for (name, target) in targets::ALL {
        let folder = format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut tried = 0;
        for seed in std::fs::read_dir(&folder).expect(&folder) {
            let seed = std::fs::read(seed.unwrap().path()).unwrap();
            for end in 0..=seed.len() {
                target(&seed[..end]);
                tried += 1;
            }
        }
        assert!(tried > 0, "{folder} is empty");
    }
}
