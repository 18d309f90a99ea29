//! Every kernel of ours, as nvcc compiled it.

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gpuzone_sim_ptx::Module;

    /// Parses all PTX in a folder; returns how many files and kernels there were.
    fn parse_all(folder: &Path) -> (usize, usize) {
        let mut counts = (0, 0);
        for entry in std::fs::read_dir(folder).expect("the kernels are there") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "ptx") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a text");
            let module = Module::parse(&text);
            let module = module.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            counts.0 += 1;
            counts.1 += module.kernels().count();
        }
        counts
    }

    #[test]
    fn all_of_nvccs_text_is_understood() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/ptx");
        let (files, kernels) = parse_all(&own);
        assert!(files >= 22 && kernels >= 30, "{files} files, {kernels} kernels");
    }

    /// PTX of other architectures, or of debug builds, in a folder of the caller's.
    #[test]
    fn other_texts_are_understood_if_there_are_any() {
        match std::env::var_os("GPUZONE_PTX_FOLDER") {
            Some(folder) => assert!(parse_all(Path::new(&folder)).0 > 0),
            None => println!("skipped: GPUZONE_PTX_FOLDER names no folder"),
        }
    }
}
