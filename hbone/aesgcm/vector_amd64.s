//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// AES-GCM (NIST SP 800-38D) with the vector forms of the AES and carry-less multiplication instructions on 512 bits: four
// blocks in a register, sixteen blocks (256 bytes) in a turn of the loop. The last turn takes what is left, under masks:
// bytes outside of a mask are neither read nor written, and count as the zeros that GHASH pads with.
//
// GHASH works on byte-reversed blocks: the lowest bit is the highest power of x. There a product comes out one bit too low,
// so the key's powers are kept one bit higher (vector.powers). It has 256 bits; REDUCE replaces the lowest 64, and then the
// next, by what they are modulo x^128 + x^7 + x^2 + x + 1. The products of a turn are added up before they are reduced.
//
// No branch and no address depends on keys or data, only on lengths.
//
// What registers hold:
//	Z0-Z3    the counter blocks, then the key stream; afterwards scratch of GHASH
//	Z4-Z7    the bytes of the turn
//	Z8       the next four counter blocks, byte-reversed, so that the counter is the lowest 32 bits
//	Z9       the shuffle that reverses the bytes of a block
//	Z10      four, in each block's lowest 32 bits
//	Z11-Z13  low, middle and high part of products
//	X14      the encrypted first counter block, which the tag is masked with
//	X15      GHASH so far, byte-reversed
//	Z16-Z30  round keys: first, 1 to 13 (10 to 13 only with AES-256), last
//	X31      the constant of REDUCE
//	K1-K4    masks of the turn's four vectors

DATA reverse<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse<>+8(SB)/8, $0x0001020304050607
GLOBL reverse<>(SB), RODATA|NOPTR, $16

DATA polynomial<>+0(SB)/8, $0xc200000000000000
DATA polynomial<>+8(SB)/8, $0
GLOBL polynomial<>(SB), RODATA|NOPTR, $16

DATA four<>+0(SB)/8, $4
DATA four<>+8(SB)/8, $0
GLOBL four<>(SB), RODATA|NOPTR, $16

DATA lanes<>+0(SB)/8, $1
DATA lanes<>+8(SB)/8, $0
DATA lanes<>+16(SB)/8, $2
DATA lanes<>+24(SB)/8, $0
DATA lanes<>+32(SB)/8, $3
DATA lanes<>+40(SB)/8, $0
DATA lanes<>+48(SB)/8, $4
DATA lanes<>+56(SB)/8, $0
GLOBL lanes<>(SB), RODATA|NOPTR, $64

// One round of all four vectors.
#define ROUND(key) \
	VAESENC key, Z0, Z0; \
	VAESENC key, Z1, Z1; \
	VAESENC key, Z2, Z2; \
	VAESENC key, Z3, Z3

// REDUCE turns the 256 bits of a product in X13 (high) and X11 (low) into the 128 bits of X15.
#define REDUCE \
	VPCLMULQDQ $0x00, X31, X11, X0; \
	VPSHUFD    $0x4e, X11, X11; \
	VPXORQ     X0, X11, X11; \
	VPCLMULQDQ $0x00, X31, X11, X0; \
	VPSHUFD    $0x4e, X11, X11; \
	VPXORQ     X0, X11, X11; \
	VPXORQ     X11, X13, X15

// MULTIPLY multiplies X15 by the power in X13.
#define MULTIPLY \
	VPCLMULQDQ $0x00, X13, X15, X11; \
	VPCLMULQDQ $0x01, X13, X15, X12; \
	VPCLMULQDQ $0x10, X13, X15, X0; \
	VPCLMULQDQ $0x11, X13, X15, X13; \
	VPXORQ     X0, X12, X12; \
	VPSLLDQ    $8, X12, X0; \
	VPSRLDQ    $8, X12, X12; \
	VPXORQ     X0, X11, X11; \
	VPXORQ     X12, X13, X13; \
	REDUCE

// func crypt(v *vector, m *message, text []byte, seals bool)
TEXT ·crypt(SB), NOSPLIT, $0-41
	MOVQ    v+0(FP), AX
	MOVQ    m+8(FP), BX
	MOVQ    text_base+16(FP), SI
	MOVQ    text_len+24(FP), CX
	MOVBLZX seals+40(FP), DI

	VBROADCASTI32X4 reverse<>(SB), Z9
	VBROADCASTI32X4 four<>(SB), Z10
	VMOVDQU64       polynomial<>(SB), X31
	VBROADCASTI32X4 (vector_keys+0)(AX), Z16
	VBROADCASTI32X4 (vector_keys+16)(AX), Z17
	VBROADCASTI32X4 (vector_keys+32)(AX), Z18
	VBROADCASTI32X4 (vector_keys+48)(AX), Z19
	VBROADCASTI32X4 (vector_keys+64)(AX), Z20
	VBROADCASTI32X4 (vector_keys+80)(AX), Z21
	VBROADCASTI32X4 (vector_keys+96)(AX), Z22
	VBROADCASTI32X4 (vector_keys+112)(AX), Z23
	VBROADCASTI32X4 (vector_keys+128)(AX), Z24
	VBROADCASTI32X4 (vector_keys+144)(AX), Z25
	VBROADCASTI32X4 (vector_keys+160)(AX), Z26
	VBROADCASTI32X4 (vector_keys+176)(AX), Z27
	VBROADCASTI32X4 (vector_keys+192)(AX), Z28
	VBROADCASTI32X4 (vector_keys+208)(AX), Z29
	VBROADCASTI32X4 (vector_keys+224)(AX), Z30
	MOVQ            vector_rounds(AX), R10

	// The first counter block: encrypted for the tag, counted up for the message.
	VMOVDQU64       message_counter(BX), X14
	VBROADCASTI32X4 message_counter(BX), Z8
	VPSHUFB         Z9, Z8, Z8
	VPADDD          lanes<>(SB), Z8, Z8
	VPXORQ          X16, X14, X14
	VAESENC         X17, X14, X14
	VAESENC         X18, X14, X14
	VAESENC         X19, X14, X14
	VAESENC         X20, X14, X14
	VAESENC         X21, X14, X14
	VAESENC         X22, X14, X14
	VAESENC         X23, X14, X14
	VAESENC         X24, X14, X14
	VAESENC         X25, X14, X14
	CMPQ            R10, $10
	JEQ             last
	VAESENC         X26, X14, X14
	VAESENC         X27, X14, X14
	VAESENC         X28, X14, X14
	VAESENC         X29, X14, X14

last:
	VAESENCLAST     X30, X14, X14

	// The additional data are one block, multiplied by the first power.
	VMOVDQU64       message_additional(BX), X15
	VPSHUFB         X9, X15, X15
	LEAQ            vector_powers(AX), R11
	VMOVDQU64       240(R11), X13
	MULTIPLY

	// All masks are full and R8 is the 16th power until the last turn.
	MOVQ            R11, R8
	KXNORQ          K1, K1, K1
	KXNORQ          K2, K2, K2
	KXNORQ          K3, K3, K3
	KXNORQ          K4, K4, K4

turn:
	CMPQ  CX, $256
	JGE   whole
	TESTQ CX, CX
	JLE   done

	// The last turn: masks for the CX bytes that are left, and in R8 the power of the first of their blocks.
	MOVQ    $-1, R12
	XORL    R13, R13
	LEAQ    15(CX), R9
	ANDQ    $~15, R9
	LEAQ    256(R11), R8
	SUBQ    R9, R8
	MOVQ    CX, R9
	BZHIQ   R9, R12, DX
	KMOVQ   DX, K1
	SUBQ    $64, R9
	CMOVQLT R13, R9
	BZHIQ   R9, R12, DX
	KMOVQ   DX, K2
	SUBQ    $64, R9
	CMOVQLT R13, R9
	BZHIQ   R9, R12, DX
	KMOVQ   DX, K3
	SUBQ    $64, R9
	CMOVQLT R13, R9
	BZHIQ   R9, R12, DX
	KMOVQ   DX, K4

whole:
	// The key stream.
	VPSHUFB Z9, Z8, Z0
	VPADDD  Z10, Z8, Z8
	VPSHUFB Z9, Z8, Z1
	VPADDD  Z10, Z8, Z8
	VPSHUFB Z9, Z8, Z2
	VPADDD  Z10, Z8, Z8
	VPSHUFB Z9, Z8, Z3
	VPADDD  Z10, Z8, Z8
	VPXORQ  Z16, Z0, Z0
	VPXORQ  Z16, Z1, Z1
	VPXORQ  Z16, Z2, Z2
	VPXORQ  Z16, Z3, Z3
	ROUND(Z17)
	ROUND(Z18)
	ROUND(Z19)
	ROUND(Z20)
	ROUND(Z21)
	ROUND(Z22)
	ROUND(Z23)
	ROUND(Z24)
	ROUND(Z25)
	CMPQ    R10, $10
	JEQ     lastround
	ROUND(Z26)
	ROUND(Z27)
	ROUND(Z28)
	ROUND(Z29)

lastround:
	VAESENCLAST Z30, Z0, Z0
	VAESENCLAST Z30, Z1, Z1
	VAESENCLAST Z30, Z2, Z2
	VAESENCLAST Z30, Z3, Z3

	// The text under it, and into GHASH the ciphertext: what was read when opening, what is written when sealing.
	VMOVDQU8.Z (SI), K1, Z4
	VMOVDQU8.Z 64(SI), K2, Z5
	VMOVDQU8.Z 128(SI), K3, Z6
	VMOVDQU8.Z 192(SI), K4, Z7
	VPXORQ     Z0, Z4, Z0
	VPXORQ     Z1, Z5, Z1
	VPXORQ     Z2, Z6, Z2
	VPXORQ     Z3, Z7, Z3
	VMOVDQU8   Z0, K1, (SI)
	VMOVDQU8   Z1, K2, 64(SI)
	VMOVDQU8   Z2, K3, 128(SI)
	VMOVDQU8   Z3, K4, 192(SI)
	TESTL      DI, DI
	JEQ        hash
	VMOVDQU8.Z Z0, K1, Z4
	VMOVDQU8.Z Z1, K2, Z5
	VMOVDQU8.Z Z2, K3, Z6
	VMOVDQU8.Z Z3, K4, Z7

hash:
	// X15 and the sixteen blocks in Z4 to Z7 times the powers at R8.
	VPSHUFB       Z9, Z4, Z4
	VPSHUFB       Z9, Z5, Z5
	VPSHUFB       Z9, Z6, Z6
	VPSHUFB       Z9, Z7, Z7
	VPXORQ        Z15, Z4, Z4
	VPCLMULQDQ    $0x00, (R8), Z4, Z11
	VPCLMULQDQ    $0x01, (R8), Z4, Z12
	VPCLMULQDQ    $0x10, (R8), Z4, Z0
	VPCLMULQDQ    $0x11, (R8), Z4, Z13
	VPCLMULQDQ    $0x00, 64(R8), Z5, Z1
	VPCLMULQDQ    $0x01, 64(R8), Z5, Z2
	VPCLMULQDQ    $0x10, 64(R8), Z5, Z3
	VPCLMULQDQ    $0x11, 64(R8), Z5, Z5
	VPTERNLOGQ    $0x96, Z0, Z2, Z12
	VPCLMULQDQ    $0x00, 128(R8), Z6, Z0
	VPTERNLOGQ    $0x96, Z0, Z1, Z11
	VPCLMULQDQ    $0x01, 128(R8), Z6, Z1
	VPCLMULQDQ    $0x10, 128(R8), Z6, Z2
	VPCLMULQDQ    $0x11, 128(R8), Z6, Z6
	VPTERNLOGQ    $0x96, Z1, Z3, Z12
	VPTERNLOGQ    $0x96, Z5, Z6, Z13
	VPCLMULQDQ    $0x00, 192(R8), Z7, Z0
	VPCLMULQDQ    $0x01, 192(R8), Z7, Z1
	VPCLMULQDQ    $0x10, 192(R8), Z7, Z3
	VPCLMULQDQ    $0x11, 192(R8), Z7, Z7
	VPTERNLOGQ    $0x96, Z1, Z2, Z12
	VPXORQ        Z3, Z12, Z12
	VPSLLDQ       $8, Z12, Z1
	VPSRLDQ       $8, Z12, Z12
	VPTERNLOGQ    $0x96, Z0, Z1, Z11
	VPTERNLOGQ    $0x96, Z7, Z12, Z13
	VEXTRACTI64X4 $1, Z11, Y0
	VEXTRACTI64X4 $1, Z13, Y1
	VPXORQ        Y0, Y11, Y11
	VPXORQ        Y1, Y13, Y13
	VEXTRACTI64X2 $1, Y11, X0
	VEXTRACTI64X2 $1, Y13, X1
	VPXORQ        X0, X11, X11
	VPXORQ        X1, X13, X13
	REDUCE
	ADDQ          $256, SI
	SUBQ          $256, CX
	JMP           turn

done:
	// The lengths are the last block.
	VMOVDQU64  message_lengths(BX), X0
	VPSHUFB    X9, X0, X0
	VPXORQ     X0, X15, X15
	VMOVDQU64  240(R11), X13
	MULTIPLY
	VPSHUFB    X9, X15, X15
	VPXORQ     X14, X15, X15
	VMOVDQU64  X15, message_tag(BX)
	VZEROUPPER
	RET

// func multiply(a, b, product *block)
TEXT ·multiply(SB), NOSPLIT, $0-24
	MOVQ      a+0(FP), AX
	MOVQ      b+8(FP), BX
	MOVQ      product+16(FP), DI
	VMOVDQU64 polynomial<>(SB), X31
	VMOVDQU64 (AX), X15
	VMOVDQU64 (BX), X13
	MULTIPLY
	VMOVDQU64 X15, (DI)
	VZEROUPPER
	RET

// func substitute(word uint32) uint32
TEXT ·substitute(SB), NOSPLIT, $0-12
	MOVL       word+0(FP), AX
	MOVD       AX, X0
	PSHUFD     $0, X0, X0
	PXOR       X1, X1
	AESENCLAST X1, X0
	MOVD       X0, AX
	MOVL       AX, ret+8(FP)
	RET
