//! The command lines of a plane's servers: defaults, then what the backend needs, then the preset,
//! then what the builder says by name, then its flags.

use super::backend::{Server, Surroundings};
use super::builder::PlaneBuilder;
use super::controllers::{self, Controller};
use super::flags::Flags;
use super::launched::CONTROLLER_MANAGER_KUBECONFIG;
use super::preset::Tuning;
use crate::assets::Binary;

impl PlaneBuilder {
    pub(super) fn servers(&self, around: &Surroundings, tuning: &Tuning) -> Vec<Server> {
        let files = &around.files;
        let etcd = Flags::new()
            .set("name", "default")
            .set("unsafe-no-fsync", "true")
            // One member: its election need not wait for anybody.
            .set("heartbeat-interval", "10")
            .set("election-timeout", "50")
            .set("log-level", "warn")
            .then(&around.etcd)
            .then(&tuning.etcd)
            .then(&self.named.etcd())
            .then(&self.etcd);
        let apiserver = Flags::new()
            // Both, always: without the first there must be a default route, and without the
            // second Kubernetes 1.37 refuses a loopback address.
            .set("advertise-address", "127.0.0.1")
            .set("endpoint-reconciler-type", "none")
            .set("allow-privileged", "true")
            .set("anonymous-auth", "false")
            .set("authorization-mode", "RBAC")
            .set("service-cluster-ip-range", "10.0.0.0/24")
            .set("client-ca-file", format!("{files}client-ca.crt"))
            .set("tls-cert-file", format!("{files}serving.crt"))
            .set("tls-private-key-file", format!("{files}serving.key"))
            .set("service-account-issuer", "https://kubernetes.default.svc")
            .set("service-account-key-file", format!("{files}service-accounts.pub"))
            .set("service-account-signing-key-file", format!("{files}service-accounts.key"))
            .then(&around.apiserver)
            .then(&tuning.apiserver)
            .then(&self.named.apiserver(&self.plugins_off(tuning), files, &around.audit_log))
            .then(&self.apiserver);
        vec![server(Binary::Etcd, &etcd, tuning), server(Binary::KubeApiserver, &apiserver, tuning)]
    }

    fn plugins_off(&self, tuning: &Tuning) -> Vec<&'static str> {
        let mut off = tuning.plugins_off.to_vec();
        if !self.controllers.contains(&Controller::ServiceAccount) {
            // Nobody makes the default accounts, and every pod would be refused.
            off.push("ServiceAccount");
        }
        off
    }

    pub(super) fn controller_manager(&self, around: &Surroundings, tuning: &Tuning) -> Server {
        let files = &around.files;
        let flags = Flags::new()
            .set("kubeconfig", format!("{files}{CONTROLLER_MANAGER_KUBECONFIG}"))
            .set("leader-elect", "false")
            .set("secure-port", "0")
            .set("controllers", controllers::flag(&self.controllers))
            .set("service-account-private-key-file", format!("{files}service-accounts.key"))
            // A test should not wait for a limit that protects large clusters.
            .set("kube-api-qps", "1000")
            .set("kube-api-burst", "2000")
            .then(&self.named.controller_manager())
            .then(&self.controller_manager);
        server(Binary::KubeControllerManager, &flags, tuning)
    }
}

fn server(binary: Binary, flags: &Flags, tuning: &Tuning) -> Server {
    let (arguments, removed) = flags.applied();
    Server { binary, arguments, removed, go: tuning.go }
}
