//! The programs of the cluster, built from pinned Go modules into a cache keyed by each module's `go.mod` and `go.sum`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::command::{call, run};
use super::layout::Layout;

/// One Go module under `e2e/components` and the programs that it gives.
pub struct Component {
    /// Folder under `e2e/components`.
    pub name: &'static str,
    programs: &'static [(&'static str, &'static str)],
    link_flags: &'static str,
    tags: &'static str,
    /// runc links libseccomp; everything else is static.
    links_c: bool,
    /// Paths that the checksum database does not know.
    not_in_checksum_database: &'static str,
}

const fn plain(name: &'static str, programs: &'static [(&'static str, &'static str)]) -> Component {
    Component { name, programs, link_flags: "", tags: "", links_c: false, not_in_checksum_database: "" }
}

/// All components, the quick ones first.
static COMPONENTS: [Component; 8] = [
    plain("etcd", &[("etcd", "go.etcd.io/etcd/server/v3")]),
    plain(
        "cni",
        &[
            ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            ("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
            ("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
        ],
    ),
    Component { tags: "seccomp", links_c: true, ..plain("runc", &[("runc", "github.com/opencontainers/runc")]) },
    plain(
        "containerd",
        &[
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
    ),
    plain("gvisor", &[("runsc", "gvisor.dev/gvisor/runsc"), ("containerd-shim-runsc-v1", "gvisor.dev/gvisor/shim")]),
    plain("helm", &[("helm", "helm.sh/helm/v4/cmd/helm")]),
    Component {
        // Without these, clients see the version v0.0.0.
        link_flags: "-X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
        ..plain("kubernetes", KUBERNETES)
    },
    Component {
        not_in_checksum_database: "github.com/cloudnativelabs/kube-router,github.com/k3s-io/kube-router",
        ..plain("kube-router", &[("kube-router", "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router")])
    },
];

const KUBERNETES: &[(&str, &str)] = &[
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
];

/// The oldest Kubernetes that the chart installs on, in place of the newest where `PADDOCK_KUBERNETES` is `1.33`.
static OLDEST_KUBERNETES: Component = Component {
    link_flags: "-X k8s.io/component-base/version.gitVersion=v1.33.13 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=33",
    ..plain("kubernetes-1.33", KUBERNETES)
};

/// Those of the cluster.
fn components() -> Result<impl Iterator<Item = &'static Component>> {
    let is_oldest = match std::env::var("PADDOCK_KUBERNETES").as_deref() {
        Ok("1.33") => true,
        Ok(other) if !other.is_empty() => bail!("PADDOCK_KUBERNETES is {other}, and can be 1.33"),
        _ => false,
    };
    Ok(COMPONENTS.iter().map(move |component| if is_oldest && component.name == "kubernetes" { &OLDEST_KUBERNETES } else { component }))
}

/// Programs that no cluster needs: [`build_one`] builds them for the tests that do.
const TOOLS: [Component; 5] = [
    plain("cert-manager", &[("cert-manager", ".")]),
    plain("kind", &[("kind", "sigs.k8s.io/kind")]),
    plain("krew", &[("krew", "sigs.k8s.io/krew/cmd/krew")]),
    Component {
        // Without discovery of targets: it checks rules.
        tags: "remove_all_sd",
        ..plain("prometheus", &[("promtool", "github.com/prometheus/prometheus/cmd/promtool")])
    },
    plain("tlog", &[("tlog", ".")]),
];

/// Built programs, by name.
pub struct Programs {
    folders: Vec<PathBuf>,
}

impl Programs {
    /// Path of a program.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        self.folders.iter().map(|folder| folder.join(name)).find(|path| path.exists()).with_context(|| format!("{name} is not built"))
    }

    /// The folder that holds a program.
    pub fn folder_of(&self, name: &str) -> Result<PathBuf> {
        Ok(self.path(name)?.parent().context("a program lies in a folder")?.to_owned())
    }

    /// All folders, as a `PATH` that ends with the machine's own.
    pub fn search_path(&self) -> String {
        let own: Vec<_> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", own.join(":"))
    }
}

/// The programs as they are, without building anything.
pub fn built(layout: &Layout) -> Result<Programs> {
    let folders = components()?.map(|component| component.folder(layout)).collect::<Result<Vec<_>>>()?;
    Ok(Programs { folders })
}

/// Builds what is missing. Says which component is being built and how long it took.
pub fn build(layout: &Layout, say: &dyn Fn(&str)) -> Result<Programs> {
    let missing: Vec<&Component> =
        components()?.filter(|component| component.folder(layout).is_ok_and(|folder| !folder.join(".complete").exists())).collect();
    for (index, component) in missing.iter().enumerate() {
        say(&format!("building {} ({} of {})", component.name, index + 1, missing.len()));
        let begin = Instant::now();
        component.build(layout).with_context(|| format!("building {}", component.name))?;
        say(&format!("built {} in {} s", component.name, begin.elapsed().as_secs()));
    }
    built(layout)
}

/// Builds the component that gives `program`, if it is missing, and returns the path of the program.
pub fn build_one(layout: &Layout, program: &str) -> Result<PathBuf> {
    let component = components()?
        .chain(&TOOLS)
        .find(|component| component.programs.iter().any(|(name, _)| *name == program))
        .with_context(|| format!("no component gives the program {program}"))?;
    let folder = component.folder(layout)?;
    if !folder.join(".complete").exists() {
        component.build(layout)?;
    }
    Ok(folder.join(program))
}

impl Component {
    fn source(&self, layout: &Layout) -> PathBuf {
        layout.clone.join("e2e/components").join(self.name)
    }

    fn folder(&self, layout: &Layout) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        for file in ["go.mod", "go.sum"] {
            let path = self.source(layout).join(file);
            hash.update(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        // A program that is written here and not only named.
        let main = self.source(layout).join("main.go");
        if main.exists() {
            hash.update(fs::read(main)?);
        }
        for part in self.programs.iter().flat_map(|(name, package)| [*name, *package]) {
            hash.update(part);
        }
        hash.update(self.link_flags);
        hash.update([u8::from(self.lacks_resource_capability())]);
        let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(layout.cache.join("components").join(format!("{}-{digest}", self.name)))
    }

    /// Only the shim of gVisor depends on CAP_SYS_RESOURCE.
    fn lacks_resource_capability(&self) -> bool {
        self.name == "gvisor" && !has_sys_resource()
    }

    /// Built into a folder beside the final one, which appears only when it is whole. Whoever comes while it is built waits for it.
    fn build(&self, layout: &Layout) -> Result<()> {
        let target = self.folder(layout)?;
        fs::create_dir_all(target.parent().context("a component lies in a folder")?)?;
        let lock = File::create(target.with_extension("lock"))?;
        lock.lock()?;
        if target.join(".complete").exists() {
            return Ok(());
        }
        let partial = target.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        let _ = fs::remove_dir_all(&target);
        fs::create_dir_all(&partial)?;
        for (program, package) in self.programs {
            let source = if *program == "containerd-shim-runsc-v1" && self.lacks_resource_capability() {
                self.shim_without_oom_score(&self.source(layout), &partial)?
            } else {
                self.source(layout)
            };
            run(&mut self.go_build(&source, &partial.join(program), package))?;
        }
        let _ = fs::remove_dir_all(partial.join("vendored"));
        fs::write(partial.join(".complete"), "")?;
        fs::rename(&partial, &target)?;
        Ok(())
    }

    fn go(&self, folder: &Path) -> Command {
        let mut command = Command::new("go");
        command.current_dir(folder).env("GOWORK", "off").env("CGO_ENABLED", if self.links_c { "1" } else { "0" });
        if !self.not_in_checksum_database.is_empty() {
            command.env("GONOSUMDB", self.not_in_checksum_database);
        }
        command
    }

    fn go_build(&self, folder: &Path, output: &Path, package: &str) -> Command {
        let mut command = self.go(folder);
        command.args(["build", "-trimpath", "-tags", self.tags]);
        command.args(["-ldflags", &format!("-s -w {}", self.link_flags)]).arg("-o").arg(output).arg(package);
        command
    }

    /// The shim sets its OOM score to -999, which needs CAP_SYS_RESOURCE, and fails the pod when it may not. Where the machine does not
    /// have the capability it is built from a vendored copy that leaves the score at 0.
    fn shim_without_oom_score(&self, source: &Path, partial: &Path) -> Result<PathBuf> {
        let copy = partial.join("vendored");
        fs::create_dir_all(&copy)?;
        for file in ["go.mod", "go.sum"] {
            fs::copy(source.join(file), copy.join(file))?;
        }
        run(self.go(&copy).args(["mod", "vendor"]))?;
        let path = copy.join("vendor/gvisor.dev/gvisor/pkg/shim/v1/manager.go");
        let text = fs::read_to_string(&path)?;
        let patched = replace_score(&text);
        ensure!(patched != text, "{} has no constant oomScoreMax = -999 any more", path.display());
        fs::write(&path, patched)?;
        Ok(copy)
    }
}

fn replace_score(text: &str) -> String {
    text.lines()
        .map(|line| if line.contains("oomScoreMax") && line.contains("-999") { line.replace("-999", "0") } else { line.to_owned() })
        .fold(String::new(), |all, line| all + &line + "\n")
}

/// Whether this process may lower OOM scores and raise limits.
pub fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << CAP_SYS_RESOURCE) != 0)
}

/// The pause program, from the C source that the Kubernetes module carries.
pub fn build_pause(layout: &Layout, output: &Path) -> Result<()> {
    let folder = layout.clone.join("e2e/components/kubernetes");
    let module = run(Command::new("go").current_dir(folder).args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]))?;
    let source = Path::new(module.trim()).join("build/pause/linux/pause.c");
    call("gcc", &["-Os", "-Wall", "-static", "-DVERSION=v1.36.3", "-o", &output.to_string_lossy(), &source.to_string_lossy()])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::replace_score;

    #[test]
    fn only_the_score_is_replaced() {
        assert_eq!(replace_score("const oomScoreMax = -999\nx := -999\n"), "const oomScoreMax = 0\nx := -999\n");
    }
}
