replicator_SRCS := \
	replicator/arena.c \
	replicator/capture.c \
	replicator/control.c \
	replicator/encoder.c \
	replicator/engine.c \
	replicator/fingerprint.c \
	replicator/handshake.c \
	replicator/journal.c \
	replicator/lease.c \
	replicator/lease_etcd.c \
	replicator/lease_file.c \
	replicator/lease_keeper.c \
	replicator/link_recv.c \
	replicator/link_sink.c \
	replicator/policy.c \
	replicator/protect.c \
	replicator/rdma_cm.c \
	replicator/rdma_conn.c \
	replicator/rdma_mem.c \
	replicator/rdma_qp.c \
	replicator/rdma_ring.c \
	replicator/replica.c \
	replicator/secret.c \
	replicator/transport.c \
	replicator/transport_rdma.c \
	replicator/transport_socket.c \
	replicator/uri.c
