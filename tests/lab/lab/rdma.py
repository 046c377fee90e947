"""Scripts that kill what RDMA is in a lab host, and nothing else."""

# soft-RoCE's packets (UDP port 4791) leave the host no more; all others do.
CUT = """
set -e
tc qdisc add dev eth0 root handle 1: htb default 1
tc class add dev eth0 parent 1: classid 1:1 htb rate 10gbit
tc class add dev eth0 parent 1: classid 1:3 htb rate 10gbit
tc qdisc add dev eth0 parent 1:3 netem loss 100%
tc filter add dev eth0 parent 1: protocol ip u32 match ip protocol 17 0xff match ip dport 4791 0xffff flowid 1:3
"""
MEND = "tc qdisc del dev eth0 root"
