/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * gateway INTERFACE COUNT
 *
 * Asks the gateway for its address COUNT times, and says how many nanoseconds each answer took. The
 * request goes to the gateway alone (RFC 1122, 2.3.2.1), so that no other card is interrupted.
 */

#include "guest.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <sys/socket.h>

#define GATEWAY "10.0.2.2"
#define OURS "10.0.2.99"

static struct sockaddr_ll ours, gateway;

static void ask(int sock)
{
	struct ether_arp asked = { .ea_hdr = {
		htons(ARPHRD_ETHER), htons(ETHERTYPE_IP), ETH_ALEN, 4, htons(ARPOP_REQUEST),
	} };
	struct ether_arp answer;

	memcpy(asked.arp_sha, ours.sll_addr, ETH_ALEN);
	inet_pton(AF_INET, OURS, asked.arp_spa);
	inet_pton(AF_INET, GATEWAY, asked.arp_tpa);
	if (sendto(sock, &asked, sizeof(asked), 0, (void *)&gateway, sizeof(gateway)) < 0)
		die("request");
	do {
		if (recv(sock, &answer, sizeof(answer), 0) < (ssize_t)sizeof(answer))
			die("answer");
	} while (ntohs(answer.arp_op) != ARPOP_REPLY || memcmp(answer.arp_spa, asked.arp_tpa, 4));
	memcpy(gateway.sll_addr, answer.arp_sha, ETH_ALEN);
}

int main(int argc, char **argv)
{
	static const struct timeval patience = { .tv_sec = 30 };
	socklen_t size = sizeof(ours);

	if (argc != 3)
		die("usage: gateway INTERFACE COUNT");
	long count = atol(argv[2]);
	uint64_t *took = room(count);
	int sock = socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ARP));

	gateway = ours = (struct sockaddr_ll){
		.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP),
		.sll_ifindex = (int)if_nametoindex(argv[1]), .sll_halen = ETH_ALEN,
	};
	memset(gateway.sll_addr, 0xff, ETH_ALEN); /* until it has answered */
	if (bind(sock, (void *)&ours, sizeof(ours)) || getsockname(sock, (void *)&ours, &size) ||
	    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		die(argv[1]);
	for (long i = -WARM_UP; i < count; i++) {
		uint64_t begun = now();

		ask(sock);
		if (i >= 0)
			took[i] = now() - begun;
	}
	return say(took, count);
}
